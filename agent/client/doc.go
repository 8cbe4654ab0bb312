// Package client speaks to a daemon: to that of this host over its Unix socket, or to one anywhere
// over TLS. The command line uses it, and so may any Go program. It decides nothing: it carries
// requests, makes those again that may be, and turns problem documents into errors.
package client

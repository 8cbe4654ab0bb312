// Package client speaks to the daemon over its Unix socket. The command line uses it, and so may any
// Go program. It decides nothing: it carries requests, and turns problem documents into errors.
package client

// Package api serves the control API: HTTP and JSON on a Unix socket. It checks what is asked for,
// says who asks, and turns answers and errors into documents. It decides nothing and keeps nothing.
package api

// Package metrics shows Prometheus what the kernel counts and what the daemon knows, and answers
// whether the daemon is well. It only reads, and no label of its is an address.
package metrics

// Package reconcile makes the kernel's tables equal to the state. It is their only writer in the
// daemon: on every change for what changed, and every 30 seconds, and at start, for the whole. It
// decides nothing.
package reconcile

// Package state holds what Levee was told: claims, allow entries, limits, interfaces. It validates,
// orders by precedence and writes to disk before it answers. It knows nothing of the kernel.
//
// The types here are the vocabulary in which the other packages under agent meet.
package state

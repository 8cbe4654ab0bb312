// Package events keeps the last things that happened, for those who follow them. Telling it of
// something never waits for a reader: one that is too slow misses some, and is told.
package events

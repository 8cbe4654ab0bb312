// Package audit keeps the record of who changed what, and of who was refused: lines of JSON, each
// with the hash of the one before, in files of bounded size. It never decides anything, and never
// holds up a change for longer than a write to a file takes.
package audit

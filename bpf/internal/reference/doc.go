// Package reference reads a frame as the data plane should, in plain Go from the RFCs, to check the
// program against. It shares no code with the program and is never used outside tests.
package reference

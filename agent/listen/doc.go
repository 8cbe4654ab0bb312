// Package listen takes TCP addresses for the daemon's listeners, also such as the host may not have yet, or
// whose port another process has. It serves nothing itself.
package listen

// Package httpguard is a net/http middleware for API servers. It holds requests to limits by
// address, by user and by token, counts failed logins, and hands those who do not stop down to a
// Levee daemon, which has the kernel drop their packets.
//
// A Guard never waits for the daemon while it answers a request, and does without it: what it
// limits and blocks by itself it limits and blocks also while the daemon is away. Its memory is
// bounded, whatever keys and addresses are tried. It never bans a proxy that it was told of.
package httpguard

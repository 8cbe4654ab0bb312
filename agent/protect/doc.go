// Package protect finds the addresses that this host can't do without: its own, those of its gateways
// and resolvers, of people in SSH sessions, of clients of the API. No ban may touch them. It reads the
// system and never changes it.
package protect

// Package notify tells a webhook when an attack begins, goes on and ends. It watches the rate of what the
// shield drops, or would drop if it did not only monitor, and posts signed JSON to one URL. It never waits
// for the other side: what does not fit its queue is counted and left out. It decides nothing about packets.
package notify

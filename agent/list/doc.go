// Package list reads and writes lists of bans in the forms that other tools have: plain text, CSV, JSON,
// ipset save, nft. It reads as the list comes and keeps none of it, and decides nothing about bans.
package list

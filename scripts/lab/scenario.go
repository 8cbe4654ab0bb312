package main

import (
	"fmt"
	"slices"
	"strings"
)

// scenario is one kind of attack. Its rate is more than the host's kernel can take of such packets
// on one CPU, and a fraction of what an attacker can send.
type scenario struct {
	Name    string
	What    string // in words
	kind    kind
	sources int // 0: a random one for each packet
	rate    int // packets per second
	remedy  remedy
}

// remedy is what someone does against an attack when it comes.
type remedy int

const (
	nothing   remedy = iota // the limits that always stand suffice
	banList                 // its sources are known, and banned
	emergency               // each network's strangers share a small rate; customers are spared
)

// few is how many sources an attack has whose sources are each worth limiting.
const few = 32

// bots is the size of the botnet.
const bots = 50_000

func scenarios() []scenario {
	return []scenario{
		{"heavy", "one source sends TCP segments of no connection", kindACK, 1, 700_000, nothing},
		{"syn", "32 sources open connections and leave them half open", kindSYN, few, 600_000, nothing},
		{"udp", "32 sources send datagrams to a closed port", kindUDP, few, 1_400_000, nothing},
		{"icmp", "32 sources send echo requests", kindICMP, few, 1_000_000, nothing},
		{"fragments", "32 sources send datagrams in fragments, to be put together", kindFragments, few, 1_400_000, nothing},
		{"botnet", "50,000 sources, each slow enough for any limit, open connections", kindSYN, bots, 600_000, banList},
		{"spoofed", "each packet has a random source and opens a connection", kindSYN, 0, 500_000, emergency},
	}
}

// pick returns the scenarios of these names, in the order in which the lab has them; all without names.
func pick(names []string) ([]scenario, error) {
	all := scenarios()
	if len(names) == 0 {
		return all, nil
	}
	var known []string
	for _, s := range all {
		known = append(known, s.Name)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("scenario %q: there are %s", name, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(all, func(s scenario) bool { return !slices.Contains(names, s.Name) }), nil
}

package state

import (
	"net/netip"
	"slices"
	"testing"
)

// TestEffectiveOf asks for many prefixes at once, of which every third has no ban: each ban is told with the
// place at which its prefix stood, behind what the lists held already.
func TestEffectiveOf(t *testing.T) {
	h := open(t)
	var prefixes, free []netip.Prefix
	var proposals []Proposal
	for i := range 3*touched + 7 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 32)
		if prefixes = append(prefixes, p); i%3 == 2 {
			free = append(free, p)
		} else {
			proposals = append(proposals, Proposal{Prefix: p, Origin: "api"})
		}
	}
	if err := h.ProposeBriefly(proposals, make([]Outcome, len(proposals))); err != nil {
		t.Fatal(err)
	}
	bans, places, none := h.EffectiveOf(prefixes, []Ban{{}}, []int{-1}, []netip.Prefix{{}})
	if len(bans) != len(proposals)+1 || len(places) != len(bans) || !slices.Equal(none[1:], free) {
		t.Fatalf("%d bans at %d places, %d have none", len(bans), len(places), len(none))
	}
	for i, place := range places[1:] {
		if got, want := bans[i+1], proposals[i].Prefix; got.Prefix != want || prefixes[place] != want || got.Expires != Forever {
			t.Errorf("%+v at %d, want %s", got, place, want)
		}
	}
}

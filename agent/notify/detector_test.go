package notify

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levee-xdp/levee/agent/state"
)

var began = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// play observes a rate a second, and returns the seconds at which something was told.
func play(d *detector, rates string) (told []string, attacks []Attack) {
	var packets uint64
	for i, word := range strings.Fields("0 " + rates) {
		var rate uint64
		fmt.Sscan(word, &rate)
		packets += rate
		now := counts{{"eth0", "ipv4", "banned", state.ActionDrop}: {packets, 100 * packets}}
		event, a := d.observe(now, time.Duration(i)*time.Second, began.Add(time.Duration(i)*time.Second))
		if event != "" {
			told, attacks = append(told, fmt.Sprintf("%d %s", i, event)), append(attacks, a)
		}
	}
	return told, attacks
}

func TestDetector(t *testing.T) {
	for _, c := range []struct {
		name, rates string
		change      func(*Thresholds)
		want        []string
	}{
		{name: "nothing", rates: "0 0 0 99 99 99 99"},
		{name: "too short", rates: "500 500 0 500 500 0"},
		{name: "an attack", rates: "0 500 500 500 500 0 0 0 0", want: []string{"4 attack_start", "9 attack_end"}},
		{name: "as much as the threshold", rates: "100 100 100", want: []string{"3 attack_start"}},
		{name: "between the thresholds it goes on", rates: "500 500 500 50 50 50 50 50 50 50 10 10 10", want: []string{"3 attack_start"}},
		{name: "between them none begins", rates: "50 50 50 50 50 50 50"},
		{name: "calm has to last", rates: "500 500 500 0 0 0 50 0 0 0 50 0 0 0 0", want: []string{"3 attack_start", "15 attack_end"}},
		{name: "two", rates: "500 500 500 0 0 0 0 500 500 500 0 0 0 0",
			want: []string{"3 attack_start", "7 attack_end", "10 attack_start", "14 attack_end"}},
		{name: "at once", rates: "500 0 0 0 0", change: func(t *Thresholds) { t.After = 0 }, want: []string{"1 attack_start", "5 attack_end"}},
		{name: "summaries", rates: "500 500 500 500 500 500 500 500", change: func(t *Thresholds) { t.Summary = 2 * time.Second },
			want: []string{"3 attack_start", "5 attack_summary", "7 attack_summary"}},
	} {
		th := Thresholds{Start: 100, After: 3 * time.Second, End: 10, Quiet: 4 * time.Second}
		if c.change != nil {
			c.change(&th)
		}
		told, _ := play(&detector{Thresholds: th}, c.rates)
		if diff := cmp.Diff(c.want, told); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestAttackFigures(t *testing.T) {
	th := Thresholds{Start: 100, After: 3 * time.Second, End: 10, Quiet: 4 * time.Second}
	_, attacks := play(&detector{Thresholds: th}, "7 7 500 700 600 20 3 0 0 0")
	if len(attacks) != 2 {
		t.Fatalf("%+v", attacks)
	}
	start, end := attacks[0], attacks[1]
	if start.Started != began.Add(2*time.Second) || start.Seconds != 3 || start.Packets != 1800 || start.Bytes != 180000 || start.Rate != 600 || start.Peak != 700 {
		t.Errorf("start: %+v", start)
	}
	if end.ID != start.ID || end.Ended != began.Add(6*time.Second) || end.Seconds != 4 || end.Peak != 700 || end.Packets != 1823 {
		t.Errorf("end: %+v", end)
	}
}

// A part of an attack is counted by reason and interface, and so is what only would have been dropped.
func TestShares(t *testing.T) {
	d := &detector{Thresholds: Thresholds{Start: 1, End: 1}}
	read := func(n uint64) counts {
		list := []state.Counted{
			{Interface: "eth0", Family: "ipv4", Action: state.ActionPass, Reason: "clean", Packets: 1e6 * n},
			{Interface: "eth0", Family: "ipv4", Action: state.ActionDrop, Reason: "banned", Packets: 10 * n, Bytes: 640 * n},
			{Interface: "eth1", Family: "ipv4", Action: state.ActionDrop, Reason: "banned", Packets: 5 * n, Bytes: 320 * n},
			{Interface: "eth1", Family: "ipv6", Action: state.ActionMonitor, Reason: "limit_syn", Packets: 30 * n, Bytes: 3000 * n},
		}
		for i := range 20 {
			list = append(list, state.Counted{Interface: "eth0", Action: state.ActionDrop, Reason: fmt.Sprintf("reason_%02d", i), Packets: n})
		}
		return countsOf(list)
	}
	d.observe(read(3), 0, began)
	event, a := d.observe(read(5), time.Second, began)
	if event != Start || a.Packets != 2*(10+5+30+20) || a.Monitored != 60 {
		t.Fatalf("%s %+v", event, a)
	}
	if len(a.Reasons) != most || a.Reasons[0] != (Share{"limit_syn", 60, 6000}) || a.Reasons[1] != (Share{"banned", 30, 1920}) || a.Reasons[2].Name != "reason_00" {
		t.Errorf("reasons: %+v", a.Reasons)
	}
	if len(a.Interfaces) != 2 || a.Interfaces[0].Name != "eth1" || a.Interfaces[0].Packets != 70 || a.Interfaces[1].Packets != 60 {
		t.Errorf("interfaces: %+v", a.Interfaces)
	}
}

// Tables that were made anew begin to count at 0: that is no attack of 2^64 packets.
func TestCountersThatBeginAnew(t *testing.T) {
	d := &detector{Thresholds: Thresholds{Start: 100, End: 1}}
	k := key{"eth0", "ipv4", "banned", state.ActionDrop}
	d.observe(counts{k: {1e9, 1e12}}, 0, began)
	if event, a := d.observe(counts{k: {50, 5000}}, time.Second, began); event != "" {
		t.Errorf("%s %+v", event, a)
	}
	if event, a := d.observe(counts{k: {200, 5000}}, 2*time.Second, began); event != Start || a.Packets != 150 {
		t.Errorf("%s %+v", event, a)
	}
	// A clock that stands still gives no rate.
	if event, _ := d.observe(counts{k: {1e9, 1e12}}, 2*time.Second, began); event != "" {
		t.Error(event)
	}
}

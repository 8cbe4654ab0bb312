package bpf_test

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/capture"
	"github.com/levee-xdp/levee/bpf/internal/reference"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// capturesIn returns the captures of one folder, or skips.
func capturesIn(t *testing.T, folder string) []string {
	t.Helper()
	dir, err := capture.Dir("..")
	if err != nil {
		if os.Getenv("LEVEE_CAPTURES") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	var files []string
	for _, pattern := range []string{"*.pcap", "*.pcapng"} {
		found, err := filepath.Glob(filepath.Join(dir, folder, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		t.Skipf("no captures in %s", filepath.Join(dir, folder))
	}
	slices.Sort(files)
	return files
}

func read(t *testing.T, path string) *capture.File {
	t.Helper()
	file, err := capture.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// parser has the program tell what it reads in a packet. Every source is banned, but the bans only
// monitor, so that a packet walks all the way and its event says what was found; and nothing
// conforms to the cap of control packets, nor to the limit, which is of SYN first and then of
// fragments.
type parser struct {
	*rig.Rig
	events *rig.Events
}

func newParser(tb testing.TB, r *rig.Rig) *parser {
	tb.Helper()
	r.Reset()
	for _, half := range []string{"0.0.0.0/0", "::/1", "8000::/1"} {
		r.Ban(rig.Ban{Prefix: netip.MustParsePrefix(half), Monitor: true})
	}
	r.SetControl(func(c *bpf.Control) {
		c.EventBudget = math.MaxUint32
		c.ControlCost, c.ControlBurst = 2, 1
	})
	return &parser{r, openEvents(tb, r)}
}

// never is a threshold that no packet conforms to.
func never(t bpf.Threshold) (all [bpf.ThresholdMax]rig.Rate) {
	all[t] = rig.Rate{PerSecond: 1, Burst: 0.5}
	return all
}

// parse returns what the program reads in a frame.
func (p *parser) parse(frame []byte) (found reference.Packet, err error) {
	for _, threshold := range []bpf.Threshold{bpf.ThresholdSYN, bpf.ThresholdFragments} {
		p.Forget()
		p.Limit(0, rig.Limit{Thresholds: never(threshold)})
		verdict, err := p.Run(frame)
		if err != nil {
			return found, err
		}
		events, err := p.events.Drain()
		if err != nil {
			return found, err
		}
		if len(events) == 0 && verdict == xdpPass {
			found.Verdict = reference.NonIP // the only kind that no ban applies to
			return found, nil
		}
		if len(events) != 1 || (events[0].Monitored == 1) != (verdict == xdpPass) {
			return found, fmt.Errorf("%s, with %d events", action(verdict), len(events))
		}
		describe(&found, events[0])
	}
	return found, nil
}

// describe fills in what an event says.
func describe(p *reference.Packet, e bpf.Event) {
	switch bpf.Reason(e.Reason) {
	case bpf.ReasonMalformedL3:
		p.Verdict = reference.MalformedL3
	case bpf.ReasonMartian:
		p.Verdict = reference.Martian
	case bpf.ReasonMalformedL4:
		p.Verdict = reference.MalformedL4
	case bpf.ReasonControlCap:
		p.Control = true
	case bpf.ReasonLimitSYN:
		p.SYN = true
	case bpf.ReasonLimitFragments:
		p.Fragment = true
	default: // sound: banned, and monitored
	}
	family := bpf.Family(e.Family)
	switch family {
	case bpf.FamilyOther:
		if p.Control {
			p.Verdict = reference.NonIP
		}
	case bpf.FamilyIPv4:
		p.Family = 4
	case bpf.FamilyIPv6:
		p.Family = 6
	}
	if p.Verdict == reference.MalformedL3 {
		return
	}
	p.Source = rig.Address(family, e.Src[0], e.Src[1])
	p.Destination = rig.Address(family, e.Dst[0], e.Dst[1])
	p.Protocol = e.Protocol
	p.SourcePort, p.DestinationPort = e.Sport, e.Dport
}

// reasonOf is what a packet is counted as where there are neither bans nor limits.
func reasonOf(p reference.Packet) bpf.Reason {
	switch {
	case p.Verdict == reference.MalformedL3:
		return bpf.ReasonMalformedL3
	case p.Verdict == reference.Martian:
		return bpf.ReasonMartian
	case p.Verdict == reference.MalformedL4:
		return bpf.ReasonMalformedL4
	case p.Control:
		return bpf.ReasonControl
	case p.Verdict == reference.NonIP:
		return bpf.ReasonNonIP
	}
	return bpf.ReasonClean
}

// comparable is what the two parsers are compared by: an event has no flag that says that it has
// ports, and a packet that is dropped as malformed or martian, or is control, comes to no limit. What
// is behind too many headers may be a SYN, so the limit takes it for one.
func comparable(p reference.Packet) reference.Packet {
	p.Ports = false
	if p.Protocol == reference.Unknown {
		p.SYN = false
	}
	if p.Verdict != reference.Sound || p.Control {
		p.SYN, p.Fragment = false, false
	}
	if p.Verdict == reference.Martian || p.Verdict == reference.MalformedL4 {
		p.Control = false
	}
	return p
}

// TestParserCaptures runs every packet of tcpdump's own odd captures through the program and through
// the reference parser. Both read the same in each.
func TestParserCaptures(t *testing.T) {
	files := capturesIn(t, "parser")
	total := corpus{files: len(files), foreign: make(map[string]int), verdicts: make(map[reference.Verdict]int)}
	var short, long sample // what fits in one buffer, and what does not
	for _, path := range files {
		file := read(t, path)
		name := filepath.Base(path)
		if file.Broken != nil {
			t.Logf("%s breaks off: %v", name, file.Broken)
			total.broken++
		}
		for _, frame := range file.Frames {
			if len(frame) > rig.FirstBuffer {
				long.add(name, frame)
			} else {
				short.add(name, frame)
			}
		}
		total.short += file.Short
		total.long += file.Long
		for link, n := range file.Foreign {
			total.foreign[link] += n
		}
	}
	for _, part := range []struct {
		*parser
		sample
	}{{newParser(t, loadDefault(t)), short}, {newParser(t, loadFrags(t)), long}} {
		complain := func(i int, format string, args ...any) {
			t.Helper()
			frame := part.frames[i]
			t.Errorf("%s, a frame of %d bytes: %s\n% x", part.names[i], len(frame), fmt.Sprintf(format, args...), frame[:min(len(frame), 128)])
		}
		for i, frame := range part.frames {
			found, err := part.parse(frame)
			if err != nil {
				t.Fatalf("%s: %v", part.names[i], err)
			}
			want := reference.Parse(frame, rig.FirstBuffer)
			if comparable(found) != comparable(want) {
				complain(i, "\nprogram   %+v\nreference %+v", found, want)
			}
			if diff := againstGopacket(frame, want); diff != "" {
				complain(i, "%s", diff)
			}
			total.packets++
			total.verdicts[want.Verdict]++
			if want.Control {
				total.control++
			}
		}
		// And as it is without bans and limits.
		part.Reset()
		for i, frame := range part.frames {
			want := reference.Parse(frame, rig.FirstBuffer)
			family := map[int]bpf.Family{4: bpf.FamilyIPv4, 6: bpf.FamilyIPv6}[want.Family]
			before := part.Count(reasonOf(want), family, false)
			run(t, part.Rig, frame)
			if part.Count(reasonOf(want), family, false).Packets != before.Packets+1 {
				complain(i, "not counted as %s, %s", reasonOf(want), family)
			}
		}
	}
	t.Logf("%d packets of %d files; not runnable: %d shorter than %d bytes, %d longer than %d, by link type %v", total.packets, total.files,
		total.short, capture.Shortest, total.long, capture.Longest, total.foreign)
	corpusPage(t, total)
}

// sample is frames, and the files that they are from.
type sample struct {
	names  []string
	frames [][]byte
}

func (s *sample) add(name string, frame []byte) {
	s.names = append(s.names, name)
	s.frames = append(s.frames, frame)
}

type corpus struct {
	files, packets, short, long, broken, control int
	foreign                                      map[string]int
	verdicts                                     map[reference.Verdict]int
}

// againstGopacket compares the reference with another's decoder where a packet is sound.
func againstGopacket(frame []byte, p reference.Packet) string {
	if p.Verdict != reference.Sound {
		return ""
	}
	decoded := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	var src, dst string
	for _, layer := range decoded.Layers() {
		switch l := layer.(type) {
		case *layers.IPv4:
			src, dst = l.SrcIP.String(), l.DstIP.String()
		case *layers.IPv6:
			src, dst = l.SrcIP.String(), l.DstIP.String()
		case *layers.TCP:
			return samePorts(p, 6, uint16(l.SrcPort), uint16(l.DstPort))
		case *layers.UDP:
			return samePorts(p, 17, uint16(l.SrcPort), uint16(l.DstPort))
		default:
			continue
		}
		if src == "<nil>" {
			return "" // it gave up on the options
		}
		if src != p.Source.String() || dst != p.Destination.String() {
			return fmt.Sprintf("gopacket reads %s > %s, the reference %s > %s", src, dst, p.Source, p.Destination)
		}
		if p.Protocol != 6 && p.Protocol != 17 {
			return "" // what follows may be a tunnel's
		}
	}
	return ""
}

func samePorts(p reference.Packet, protocol uint8, src, dst uint16) string {
	if !p.Ports || p.Protocol == protocol && p.SourcePort == src && p.DestinationPort == dst {
		return ""
	}
	return fmt.Sprintf("gopacket reads protocol %d ports %d > %d, the reference %+v", protocol, src, dst, p)
}

// operatorLimit is what a small host's operator might set: generous for people, tight for what
// floods are made of.
func operatorLimit() rig.Limit {
	var l rig.Limit
	l.Thresholds[bpf.ThresholdPackets] = rig.Rate{PerSecond: 20_000, Burst: 20_000}
	l.Thresholds[bpf.ThresholdBits] = rig.Rate{PerSecond: 25e6, Burst: 25e6} // 200 Mbit/s
	l.Thresholds[bpf.ThresholdSYN] = rig.Rate{PerSecond: 200, Burst: 200}
	l.Thresholds[bpf.ThresholdUDP] = rig.Rate{PerSecond: 5_000, Burst: 5_000}
	l.Thresholds[bpf.ThresholdICMP] = rig.Rate{PerSecond: 100, Burst: 100}
	l.Thresholds[bpf.ThresholdFragments] = rig.Rate{PerSecond: 100, Burst: 100}
	l.Aggregate = rig.Rate{PerSecond: 50_000, Burst: 50_000}
	return l
}

// attack is what became of one capture of an attack.
type attack struct {
	file    string
	packets int
	sources int
	reasons map[bpf.Reason]uint64
}

// TestAttackCaptures runs the captures of real attacks against the default limit of operatorLimit,
// as fast as they go, and accounts for every packet.
func TestAttackCaptures(t *testing.T) {
	files := capturesIn(t, "ddos")
	needKernel(t)
	config := rig.Config{Slot: testSlot, Sizes: rig.Smallest(), Features: bpf.DefaultFeatures()}
	config.Sizes.Sources = 1 << 16
	config.Features.Frags = true // some were recorded behind a card that merges segments
	r := load(t, config)
	var attacks []attack
	for _, path := range files {
		file := read(t, path)
		if file.Broken != nil || file.Short+file.Long+len(file.Foreign) != 0 {
			t.Fatalf("%s: %v, and %d short, %d long, %v foreign", path, file.Broken, file.Short, file.Long, file.Foreign)
		}
		r.Reset()
		r.Limit(0, operatorLimit())
		r.SetControl(func(c *bpf.Control) {
			c.SourceIdle = 10e9
			c.ControlCost, c.ControlBurst = 1e9/2000, 1e9 // 2,000 a second
		})
		a := attack{file: filepath.Base(path), packets: len(file.Frames), reasons: make(map[bpf.Reason]uint64)}
		before := r.Snapshot()
		for _, frame := range file.Frames {
			run(t, r, frame)
		}
		var sum uint64
		now := r.Snapshot()
		for _, reason := range bpf.Reasons() {
			for family := range bpf.FamilyMax {
				n := now.Reason(testSlot, reason, family) - before.Reason(testSlot, reason, family)
				if n != 0 {
					a.reasons[reason] += n
				}
				sum += n
			}
		}
		if sum != uint64(a.packets) {
			t.Errorf("%s: %d packets, and %d counted", a.file, a.packets, sum)
		}
		a.sources = len(now.Sources)
		attacks = append(attacks, a)
		t.Logf("%s: %d packets, %d sources, %v", a.file, a.packets, a.sources, a.reasons)
	}
	attackPage(t, attacks)
}

const capturesPath = "../docs/captures.md"

// why explains each capture's outcome, for docs/captures.md.
var why = map[string]string{
	"amp.TCP.reflection.SYNACK.pcap": "Reflected SYN|ACK from some 7,000 servers: each is a real host that answers a forged SYN, and none " +
		"sends more than a hundred packets. No source breaks a limit of its own, and rightly so. What passes is dropped by the kernel for " +
		"want of a socket. The destination unreachable errors among it are `control`.",
	"amp.UDP.isakmp.pcap": "Reflected IKE answers of 246 bytes from some 2,800 hosts, fewer than five packets each. By source they are nothing. " +
		"A host that offers no UDP on the attacked port binds a tight limit with a short group and an aggregate to it; a feed of known " +
		"reflectors bans them.",
	"amp.dns.RRSIG.fragmented.pcap": "DNS answers of several fragments from open resolvers, amid ordinary traffic of the same host. The resolvers' " +
		"fragments break the limit of fragments, ordinary TCP passes.",
	"pkt.TCP.synflood.spoofed.pcap": "A SYN flood whose sources are random: 37,600 of them, one packet each. No limit by source can see it, " +
		"and nothing here pretends to: the table of sources (65,536 in this run) holds most of them and does not grow, the rest are `untracked` " +
		"under the aggregates of their prefixes, and SYN cookies are what the host answers it with.",
}

func attackPage(t *testing.T, attacks []attack) {
	var b strings.Builder
	b.WriteString("| capture | packets | sources | what became of them |\n|---|---|---|---|\n")
	for _, a := range attacks {
		var parts []string
		for _, reason := range slices.Sorted(maps.Keys(a.reasons)) {
			parts = append(parts, fmt.Sprintf("`%s` %d", reason, a.reasons[reason]))
		}
		fmt.Fprintf(&b, "| `%s` | %d | %d | %s |\n", a.file, a.packets, a.sources, strings.Join(parts, ", "))
	}
	for _, a := range attacks {
		if why[a.file] == "" {
			t.Errorf("%s is not explained", a.file)
		}
		fmt.Fprintf(&b, "\n**%s.** %s\n", a.file, why[a.file])
	}
	if *update {
		section(t, capturesPath, "attacks", b.String())
		return
	}
	page, err := os.ReadFile(capturesPath)
	if err != nil {
		t.Fatal(err)
	}
	// How much breaks a limit depends on how fast the machine is: the reasons and the sums do not.
	for _, a := range attacks {
		row := regexp.MustCompile(`(?m)^\| ` + "`" + regexp.QuoteMeta(a.file) + "`" + ` \| (\d+) \| \d+ \| (.+) \|$`).FindStringSubmatch(string(page))
		if row == nil {
			t.Errorf("%s has no row for %s; run the test with -update", capturesPath, a.file)
			continue
		}
		said := 0
		for _, part := range regexp.MustCompile("`([a-z0-9_]+)` (\\d+)").FindAllStringSubmatch(row[2], -1) {
			n, _ := strconv.Atoi(part[2])
			said += n
			if !slices.ContainsFunc(slices.Collect(maps.Keys(a.reasons)), func(r bpf.Reason) bool { return r.String() == part[1] }) {
				t.Errorf("%s: %s says %s, and there is none", a.file, capturesPath, part[1])
			}
		}
		if row[1] != strconv.Itoa(a.packets) || said != a.packets {
			t.Errorf("%s: %s says %s packets that sum up to %d, there are %d", a.file, capturesPath, row[1], said, a.packets)
		}
		for reason := range a.reasons {
			if !strings.Contains(row[2], "`"+reason.String()+"`") {
				t.Errorf("%s: %s does not say %s", a.file, capturesPath, reason)
			}
		}
	}
}

func corpusPage(t *testing.T, c corpus) {
	var b strings.Builder
	b.WriteString("| of the parser's captures | packets |\n|---|---|\n")
	fmt.Fprintf(&b, "| run, of %d files | %d |\n", c.files, c.packets)
	for _, v := range []reference.Verdict{reference.Sound, reference.NonIP, reference.MalformedL3, reference.Martian, reference.MalformedL4} {
		fmt.Fprintf(&b, "| … %s | %d |\n", strings.ReplaceAll(v.String(), "sound", "nothing wrong with it"), c.verdicts[v])
	}
	fmt.Fprintf(&b, "| … of all these, ARP, neighbour discovery or ICMP errors | %d |\n", c.control)
	fmt.Fprintf(&b, "| not run: shorter than an Ethernet header | %d |\n", c.short)
	fmt.Fprintf(&b, "| not run: longer than %d bytes | %d |\n", capture.Longest, c.long)
	for _, link := range slices.Sorted(maps.Keys(c.foreign)) {
		fmt.Fprintf(&b, "| not run: link type %s | %d |\n", link, c.foreign[link])
	}
	fmt.Fprintf(&b, "\n%d of the files break off in the middle of a packet; what is before that was run.\n", c.broken)
	if *update {
		section(t, capturesPath, "parser", b.String())
		return
	}
	page, err := os.ReadFile(capturesPath)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(page, []byte(b.String())) {
		t.Errorf("%s says otherwise; run the test with -update:\n%s", capturesPath, b.String())
	}
}

// section rewrites one part of a page, between its marks.
func section(t *testing.T, path, name, text string) {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- "+name+": written by a test -->\n", "<!-- /"+name+" -->"
	before, rest, ok := strings.Cut(string(page), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no part %q", path, name)
	}
	if err := os.WriteFile(path, []byte(before+begin+text+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

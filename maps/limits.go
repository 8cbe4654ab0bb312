package maps

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
)

// Limit is one limit: what each of its sources may send, and whose packets fall under it.
type Limit struct {
	Thresholds      [bpf.ThresholdMax]Rate // by bpf.Threshold; bpf.ThresholdBits is in bits
	Aggregate       Rate                   // packets of a whole prefix together; if not set, that of the packets' threshold
	AggregateAlways bool                   // count every packet to the aggregate, not only those of sources that are not tracked
	Penalty         time.Duration          // how long a source that broke the limit is dropped whole; 0: only the excess is
	Monitor         bool                   // count what would be dropped, and pass it
	Derived         bool                   // not set at run time; a mark for who reads the table when the state is lost

	// Which prefix is one source, and which one aggregate, in bits. 0 is 32, 64, 24 and 48.
	Group4, Group6, Aggregate4, Aggregate6 int

	Sources  []netip.Prefix // source prefixes that fall under the limit
	Services []Service      // and destinations, for sources that no prefix binds
}

// Service is a transport protocol, or one of its ports, as a packet's destination.
type Service struct {
	Protocol uint8  // IANA's number
	Port     uint16 // of TCP and UDP; 0: all ports, and packets without one
}

// String returns the service as protocol/port.
func (s Service) String() string { return fmt.Sprintf("protocol %d port %d", s.Protocol, s.Port) }

// Limits is the table of limits, and what is bound to them. Its methods may be called at the same
// time.
//
// One limit applies to a packet: that of the longest source prefix that is bound to one, else that
// of its service, else number 0. A limit is written before anything is bound to it, and goes after
// everything that was. What sources owe a limit survives its changes.
type Limits struct {
	mu        sync.Mutex
	limits    []bpf.Limit
	services  []uint64
	protocols []uint64
	trie      trie[uint32]
	control   *bpf.Control
	tick      uint64 // of the coarse clock, ns
	cpus      uint64 // that may let packets pass on credit

	bound       map[netip.Prefix]uint32 // what trie holds
	boundTo     [bpf.MaxLimits]int      // how many services a limit has
	serviceSize uint32                  // all of them
}

func openLimits(o *opener, control *bpf.Control) *Limits {
	cpus, err := ebpf.PossibleCPU()
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("count the CPUs: %w", err)
	}
	// The blocker is number 0: no binding.
	return &Limits{
		limits:    array[bpf.Limit](o, bpf.LeveeMapLimits, true),
		services:  array[uint64](o, bpf.LeveeMapServiceLimits, true),
		protocols: array[uint64](o, bpf.LeveeMapProtocolLimits, true),
		trie:      trie[uint32]{m: o.get(bpf.LeveeMapSourceLimits), name: bpf.LeveeMapSourceLimits},
		control:   control,
		tick:      tick(),
		cpus:      uint64(cpus),
	}
}

// adopt learns what is bound.
func (l *Limits) adopt() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.survey()
}

func (l *Limits) survey() (err error) {
	if l.bound, err = l.trie.all(); err != nil {
		return err
	}
	l.boundTo = [bpf.MaxLimits]int{}
	l.serviceSize = 0
	for _, number := range l.eachService() {
		l.boundTo[number]++
		l.serviceSize++
	}
	l.storeSizes()
	return nil
}

// storeSizes tells the program how much is bound: what is not need not be asked.
func (l *Limits) storeSizes() {
	atomic.StoreUint32(&l.control.SourceLimits, uint32(len(l.bound)))
	atomic.StoreUint32(&l.control.ServiceLimits, l.serviceSize)
}

// Put sets a limit, and binds exactly its sources and services to it. Number 0 is the default and
// binds none. Returns a *RangeError for a figure out of its range, a *FullError if there is no room
// for the sources, and an error if something is bound to another limit; then nothing has changed.
func (l *Limits) Put(number uint8, limit Limit) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, err := l.encode(number, limit)
	if err != nil {
		return err
	}
	fresh := 0
	for _, p := range e.sources {
		other, ok := l.bound[p]
		switch {
		case !ok:
			fresh++
		case other != uint32(number):
			return fmt.Errorf("limit %d: %s is bound to limit %d", number, p, other)
		}
	}
	for _, s := range e.services {
		if other := l.service(s); other != 0 && other != number {
			return fmt.Errorf("limit %d: %s is bound to limit %d", number, s, other)
		}
	}
	// One more for the blocker: see trie.
	if fresh > 0 && l.trie.used+fresh+1 > l.trie.room() {
		return l.full(e.sources)
	}
	l.write(number, e.limit)
	if err := l.bind(number, e); err != nil {
		return err
	}
	return l.release(number, e)
}

// release frees what is bound to a limit and not in e.
func (l *Limits) release(number uint8, e encoded) error {
	return l.unbind(
		func(p netip.Prefix, n uint8) bool {
			_, keep := slices.BinarySearchFunc(e.sources, p, netip.Prefix.Compare)
			return n != number || keep
		},
		func(s Service, n uint8) bool { return n != number || slices.Contains(e.services, s) },
	)
}

func (l *Limits) full(sources []netip.Prefix) error {
	return &FullError{Prefix: sources[0].String(), More: len(sources) - 1, Table: l.trie.name,
		Used: l.trie.used, Slots: l.trie.room() - 1}
}

// Delete takes a limit away, with its bindings, and returns whether it was there.
func (l *Limits) Delete(number uint8) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delete(number)
}

func (l *Limits) delete(number uint8) (bool, error) {
	if err := l.release(number, encoded{}); err != nil {
		return false, err
	}
	at := &l.limits[number]
	was := atomic.LoadUint64(flagsOf(at))&uint64(bpf.LimitEnabled) != 0
	atomic.StoreUint64(flagsOf(at), 0)
	storeRates(at, &bpf.Limit{})
	atomic.StoreUint64(&at.Penalty, 0)
	return was, nil
}

// Get returns a limit as the kernel has it: rates are those that it keeps, up to 1 % below what
// was put.
func (l *Limits) Get(number uint8) (Limit, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := &l.limits[number]
	if at.Flags&bpf.LimitEnabled == 0 {
		return Limit{}, false
	}
	limit := l.decode(at)
	for p, n := range l.bound {
		if n == uint32(number) {
			limit.Sources = append(limit.Sources, p)
		}
	}
	slices.SortFunc(limit.Sources, netip.Prefix.Compare)
	if l.boundTo[number] > 0 {
		for s, n := range l.eachService() {
			if n == number {
				limit.Services = append(limit.Services, s)
			}
		}
	}
	return limit, true
}

// All returns all limits there are by number, as Get does.
func (l *Limits) All() map[uint8]Limit {
	all := make(map[uint8]Limit)
	for _, number := range l.Numbers() {
		if limit, ok := l.Get(number); ok {
			all[number] = limit
		}
	}
	return all
}

// Numbers returns the numbers of all limits there are, in their order.
func (l *Limits) Numbers() []uint8 {
	var numbers []uint8
	for i := range l.limits {
		if l.enabled(uint8(i)) {
			numbers = append(numbers, uint8(i))
		}
	}
	return numbers
}

func (l *Limits) enabled(number uint8) bool {
	return atomic.LoadUint64(flagsOf(&l.limits[number]))&uint64(bpf.LimitEnabled) != 0
}

// Sync makes the table equal to a wanted set of limits by number. All are checked before anything
// is written; then limits are written, things bound, things unbound, and limits taken away, in
// this order, so that no packet meets a binding without its limit. Errors are those of Put.
func (l *Limits) Sync(wanted map[uint8]Limit) (Changes, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var changes Changes
	toldSources, toldServices := atomic.LoadUint32(&l.control.SourceLimits), atomic.LoadUint32(&l.control.ServiceLimits)
	if err := l.survey(); err != nil {
		return changes, err
	}
	if toldSources != uint32(len(l.bound)) || toldServices != l.serviceSize {
		changes.Repaired++ // the program would not have asked for them, or in vain
	}

	want := make(map[uint8]encoded, len(wanted))
	sources := make(map[netip.Prefix]uint8)
	services := make(map[Service]uint8)
	for _, number := range slices.Sorted(maps.Keys(wanted)) {
		e, err := l.encode(number, wanted[number])
		if err != nil {
			return changes, err
		}
		for _, p := range e.sources {
			if other, ok := sources[p]; ok && other != number {
				return changes, fmt.Errorf("limits %d and %d both bind %s", other, number, p)
			}
			sources[p] = number
		}
		for _, s := range e.services {
			if other, ok := services[s]; ok && other != number {
				return changes, fmt.Errorf("limits %d and %d both bind %s", other, number, s)
			}
			services[s] = number
		}
		want[number] = e
	}
	if len(sources)+1 > l.trie.room() {
		return changes, l.full(slices.Collect(maps.Keys(sources)))
	}

	for number, e := range want {
		was, same := l.enabled(number), l.limits[number] == e.limit
		same = same && l.binds(number, e)
		switch {
		case !was:
			changes.Added++
		case same:
			changes.Kept++
		default:
			changes.Updated++
		}
		l.write(number, e.limit)
	}

	// Services are slots that are there already. Sources may need the room of those that go.
	var left []uint8
	for number, e := range want {
		err := l.bind(number, e)
		switch {
		case errors.Is(err, ErrFull):
			left = append(left, number)
		case err != nil:
			return changes, err
		}
	}
	err := l.unbind(
		func(p netip.Prefix, n uint8) bool { keep, ok := sources[p]; return ok && keep == n },
		func(s Service, n uint8) bool { return services[s] == n },
	)
	if err != nil {
		return changes, err
	}
	for _, number := range left {
		if err := l.bind(number, want[number]); err != nil {
			return changes, err
		}
	}
	for number := range l.limits {
		if _, ok := want[uint8(number)]; ok || !l.enabled(uint8(number)) {
			continue
		}
		if _, err := l.delete(uint8(number)); err != nil {
			return changes, err
		}
		changes.Removed++
	}
	return changes, nil
}

// binds tells whether exactly this is bound to a limit.
func (l *Limits) binds(number uint8, e encoded) bool {
	n := 0
	for _, other := range l.bound {
		if other == uint32(number) {
			n++
		}
	}
	if n != len(e.sources) || l.boundTo[number] != len(e.services) {
		return false
	}
	return !slices.ContainsFunc(e.sources, func(p netip.Prefix) bool { return l.bound[p] != uint32(number) }) &&
		!slices.ContainsFunc(e.services, func(s Service) bool { return l.service(s) != number })
}

// bind binds sources and services to a limit, away from those that had them.
func (l *Limits) bind(number uint8, e encoded) error {
	defer l.storeSizes()
	for _, p := range e.sources {
		if l.bound[p] == uint32(number) {
			continue
		}
		if err := l.trie.put(p, uint32(number)); err != nil {
			return err
		}
		l.bound[p] = uint32(number)
	}
	for _, s := range e.services {
		l.setService(s, number)
	}
	return nil
}

// unbind frees what is bound and not to be kept.
func (l *Limits) unbind(source func(netip.Prefix, uint8) bool, service func(Service, uint8) bool) error {
	defer l.storeSizes()
	for p, n := range l.bound {
		if source(p, uint8(n)) {
			continue
		}
		if _, err := l.trie.delete(p); err != nil {
			return err
		}
		delete(l.bound, p)
	}
	if l.serviceSize > 0 {
		for s, n := range l.eachService() {
			if !service(s, n) {
				l.setService(s, 0)
			}
		}
	}
	return nil
}

const (
	protoTCP = 6
	protoUDP = 17
)

// cell is where a service's number stands: a byte of a word.
func (l *Limits) cell(s Service) (word *uint64, shift uint) {
	if s.Port == 0 {
		return &l.protocols[s.Protocol/8], uint(s.Protocol % 8 * 8)
	}
	i := int(s.Port / 8)
	if s.Protocol == protoUDP {
		i += len(l.services) / 2
	}
	return &l.services[i], uint(s.Port % 8 * 8)
}

func (l *Limits) service(s Service) uint8 {
	word, shift := l.cell(s)
	return uint8(*word >> shift)
}

func (l *Limits) setService(s Service, number uint8) {
	old := l.service(s)
	if old == number {
		return
	}
	word, shift := l.cell(s)
	atomic.StoreUint64(word, *word&^(0xFF<<shift)|uint64(number)<<shift)
	if old != 0 {
		l.boundTo[old]--
		l.serviceSize--
	}
	if number != 0 {
		l.boundTo[number]++
		l.serviceSize++
	}
}

// eachService yields every service that is bound, and to which limit.
func (l *Limits) eachService() func(yield func(Service, uint8) bool) {
	return func(yield func(Service, uint8) bool) {
		for i, word := range l.protocols {
			for j := 0; word != 0; j, word = j+1, word>>8 {
				if n := uint8(word); n != 0 && !yield(Service{Protocol: uint8(i*8 + j)}, n) {
					return
				}
			}
		}
		for i, word := range l.services {
			for j := 0; word != 0; j, word = j+1, word>>8 {
				s := Service{protoTCP, uint16(i*8 + j)} // the second half wraps around
				if i >= len(l.services)/2 {
					s.Protocol = protoUDP
				}
				if n := uint8(word); n != 0 && !yield(s, n) {
					return
				}
			}
		}
	}
}

// flagsOf is the word of a limit that holds its flags and prefix lengths: one store changes all.
func flagsOf(limit *bpf.Limit) *uint64 { return (*uint64)(unsafe.Pointer(&limit.Flags)) }

// write sets a limit in place. The flags come last: they switch a new limit on.
func (l *Limits) write(number uint8, limit bpf.Limit) {
	at := &l.limits[number]
	storeRates(at, &limit)
	atomic.StoreUint64(&at.Penalty, limit.Penalty)
	atomic.StoreUint64(flagsOf(at), *flagsOf(&limit))
}

// penaltyEnd returns when the penalty ends that a source's state tells of, or 0 if there is none
// now: see penalized in limit.h.
func (l *Limits) penaltyEnd(number uint8, tat, now uint64) uint64 {
	penalty := atomic.LoadUint64(&l.limits[number].Penalty)
	until := tat &^ bpf.TATPenalty
	if until == tat || until <= now || until-now > penalty {
		return 0
	}
	return until
}

// group returns which prefix length makes one source of a limit. Of a limit that is not there
// nothing is known but the whole address.
func (l *Limits) group(number uint8, v6 bool) int {
	flags := atomic.LoadUint64(flagsOf(&l.limits[number]))
	switch {
	case flags&uint64(bpf.LimitEnabled) == 0 && v6:
		return 128
	case flags&uint64(bpf.LimitEnabled) == 0:
		return 32
	case v6:
		return int(flags >> 16 & 0xFF)
	}
	return int(flags >> 8 & 0xFF)
}

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

// The source whose packets tell to the half millisecond whether it is banned.
var probeAddrs = family[netip.Addr]{netip.MustParseAddr("203.0.113.66"), netip.MustParseAddr("2001:db8:66::66")}

const (
	probePort = 7000
	probeStep = 500 * time.Microsecond
	// So many lost in a row are no accident.
	probeGap = 20
)

// probe sends a numbered datagram every half millisecond from the world to the host, and notes
// which arrive.
type probe struct {
	send, receive *net.UDPConn
	stop          context.CancelFunc
	tasks         sync.WaitGroup

	mutex   sync.Mutex
	sent    []time.Time // by number
	arrived map[int]bool
}

func startProbe(ctx context.Context, n *network, version int) (*probe, error) {
	p := &probe{arrived: map[int]bool{}}
	listen := func() (err error) {
		p.receive, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(serverAddrs.of(version), probePort)))
		return err
	}
	if err := n.host.Do(listen); err != nil {
		return nil, fmt.Errorf("listen for the probe: %w", err)
	}
	dial := func() (err error) {
		from := net.UDPAddrFromAddrPort(netip.AddrPortFrom(probeAddrs.of(version), 0))
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(serverAddrs.of(version), probePort))
		p.send, err = net.DialUDP("udp", from, to)
		return err
	}
	if err := n.world.Do(dial); err != nil {
		_ = p.receive.Close()
		return nil, fmt.Errorf("send the probe: %w", err)
	}
	ctx, p.stop = context.WithCancel(ctx)
	p.tasks.Go(func() { p.sending(ctx) })
	p.tasks.Go(p.receiving)
	return p, nil
}

func (p *probe) sending(ctx context.Context) {
	packet := make([]byte, 8)
	for next := monotonic(); ctx.Err() == nil; next += probeStep {
		sleepUntil(next)
		p.mutex.Lock()
		binary.BigEndian.PutUint64(packet, uint64(len(p.sent)))
		p.sent = append(p.sent, time.Now())
		p.mutex.Unlock()
		_, _ = p.send.Write(packet) // one that is not sent is one that did not arrive
	}
}

func (p *probe) receiving() {
	packet := make([]byte, 64)
	for {
		n, err := p.receive.Read(packet)
		if err != nil {
			return
		}
		if n != 8 {
			continue
		}
		p.mutex.Lock()
		p.arrived[int(binary.BigEndian.Uint64(packet))] = true
		p.mutex.Unlock()
	}
}

// end stops the probe and says when it was shut out: the times at which the first packet of the
// longest gap and the first one after it were sent.
func (p *probe) end() (shut, open time.Time, err error) {
	p.stop()
	_ = p.send.Close()
	time.Sleep(20 * time.Millisecond) // for what is still under way
	_ = p.receive.Close()
	p.tasks.Wait()

	first, length := 0, 0
	for i := 0; i < len(p.sent); {
		j := i
		for j < len(p.sent) && !p.arrived[j] {
			j++
		}
		if j-i > length {
			first, length = i, j-i
		}
		i = j + 1
	}
	switch {
	case length < probeGap:
		return shut, open, fmt.Errorf("none of %d packets was dropped", len(p.sent))
	case first == 0:
		return shut, open, fmt.Errorf("none of %d packets passed before the ban", len(p.sent))
	case first+length == len(p.sent):
		return shut, open, fmt.Errorf("the last %d packets were dropped: the ban did not end", length)
	}
	return p.sent[first], p.sent[first+length], nil
}

// timing is how promptly a ban began and ended. Negative: before the time that counts.
type timing struct {
	Family   string        `json:"family"`
	Killed   bool          `json:"daemon_killed"` // kill -9 while the ban stood
	Begins   time.Duration `json:"answer_to_first_drop_ns"`
	Ends     time.Duration `json:"expiry_to_first_pass_ns"`
	Answered time.Duration `json:"request_to_answer_ns"` // the whole command
}

// timeBan bans the probes' sources for a while and measures when that begins and ends; with kill,
// the daemon is killed in between.
func timeBan(ctx context.Context, n *network, s *shield, length time.Duration, kill bool) ([]timing, error) {
	var probes []*probe
	defer func() {
		for _, p := range probes {
			p.stop()
		}
	}()
	for _, version := range []int{4, 6} {
		p, err := startProbe(ctx, n, version)
		if err != nil {
			return nil, err
		}
		probes = append(probes, p)
	}
	if err := sleep(ctx, 100*time.Millisecond); err != nil {
		return nil, err
	}
	asked := time.Now()
	answer, err := s.ban(ctx, length, []netip.Prefix{
		netip.PrefixFrom(probeAddrs.four, 32), netip.PrefixFrom(probeAddrs.six, 64).Masked(),
	})
	if err != nil {
		return nil, err
	}
	if kill {
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
		s.kill()
	}
	if err := sleep(ctx, time.Until(slices.MaxFunc(answer.expires, time.Time.Compare))+150*time.Millisecond); err != nil {
		return nil, err
	}
	var timings []timing
	for i, p := range probes {
		shut, open, err := p.end()
		if err != nil {
			return nil, fmt.Errorf("time a ban: IPv%d: %w", 4+2*i, err)
		}
		timings = append(timings, timing{
			Family: "IPv" + strconv.Itoa(4+2*i), Killed: kill, Answered: answer.at.Sub(asked),
			Begins: shut.Sub(answer.at), Ends: open.Sub(answer.expires[i]),
		})
	}
	return timings, nil
}

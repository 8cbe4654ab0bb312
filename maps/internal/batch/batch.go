package batch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Most is how many addresses a run takes.
const Most = 1 << 15

// Lists is how many ban lists an answer can name: those from 0 on.
const Lists = 8

// Answer is what the program did with a packet.
type Answer struct {
	Verdict uint32 // enum xdp_action
	List    int    // of the ban, or -1
	Monitor bool   // the ban only monitors
}

// Batch stands before a program and asks it. One caller at a time.
type Batch struct {
	coll      *ebpf.Collection
	questions []batchQuestion
	answers   []batchAnswer
	progress  []batchProgress
	mapped    [][]byte
}

// New puts a batch before a program, of whose maps it needs list_counters. The program must not be
// loaded for multi-buffer packets.
func New(target *ebpf.Program, lists *ebpf.Map) (_ *Batch, err error) {
	b := &Batch{}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	spec, err := loadBatch()
	if err != nil {
		return nil, err
	}
	b.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{batchMapListCounters: lists}})
	if err != nil {
		return nil, fmt.Errorf("load the batch: %w", err)
	}
	if err = b.coll.Maps[batchMapTarget].Put(uint32(0), target); err != nil {
		return nil, fmt.Errorf("put %s behind the batch: %w", target, err)
	}
	if b.questions, err = mapped[batchQuestion](b, batchMapQuestions); err != nil {
		return nil, err
	}
	if b.answers, err = mapped[batchAnswer](b, batchMapAnswers); err != nil {
		return nil, err
	}
	b.progress, err = mapped[batchProgress](b, batchMapProgress)
	return b, err
}

// Ask hands a packet of each address, all of one family, to the program, one right after the other,
// and appends what came of them to answers.
func (b *Batch) Ask(answers []Answer, addrs []netip.Addr) ([]Answer, error) {
	if len(addrs) == 0 {
		return answers, nil
	}
	packet := frame(addrs[0].Is6())
	for len(addrs) > 0 {
		n := min(len(addrs), Most)
		for i, addr := range addrs[:n] {
			b.questions[i] = question(addr)
		}
		b.progress[0] = batchProgress{Questions: uint64(n)}
		// A packet a run: the kernel takes milliseconds to prepare one of more.
		for asked := uint64(0); asked < uint64(n); {
			verdict, err := b.coll.Programs[batchProgBatch].Run(&ebpf.RunOptions{Data: packet})
			if err != nil {
				return answers, fmt.Errorf("ask about %d addresses: %w", n, err)
			}
			if b.progress[0].Asked == asked {
				return answers, fmt.Errorf("ask about %d addresses: only %d were asked, verdict %d", n, asked, verdict)
			}
			asked = b.progress[0].Asked
		}
		for _, a := range b.answers[:n] {
			answers = append(answers, Answer{Verdict: a.Verdict, List: int(a.List+1)/2 - 1, Monitor: a.List != 0 && a.List%2 == 0})
		}
		addrs = addrs[n:]
	}
	return answers, nil
}

func question(addr netip.Addr) (q batchQuestion) {
	if addr.Is4() {
		a := addr.As4()
		q.Addr[0] = uint64(binary.NativeEndian.Uint32(a[:]))
		return q
	}
	a := addr.As16()
	q.Addr[0], q.Addr[1] = binary.NativeEndian.Uint64(a[:]), binary.NativeEndian.Uint64(a[8:])
	return q
}

// frame is an Ethernet frame with an empty UDP datagram.
func frame(v6 bool) []byte {
	f := make([]byte, 64)
	if v6 {
		binary.BigEndian.PutUint16(f[12:], 0x86DD)
		f[14], f[14+5], f[14+6], f[14+7] = 0x60, 8, 17, 64 // version, length, UDP, hop limit
		f[54+5] = 8                                        // the datagram's length
		return f
	}
	binary.BigEndian.PutUint16(f[12:], 0x0800)
	f[14], f[14+3], f[14+8], f[14+9] = 0x45, 28, 64, 17 // version, length, hop limit, UDP
	f[34+5] = 8
	return f
}

func mapped[T any](b *Batch, name string) ([]T, error) {
	m := b.coll.Maps[name]
	page := os.Getpagesize()
	size := (int(unsafe.Sizeof(*new(T)))*int(m.MaxEntries()) + page - 1) / page * page
	mem, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", name, err)
	}
	b.mapped = append(b.mapped, mem)
	return unsafe.Slice((*T)(unsafe.Pointer(&mem[0])), m.MaxEntries()), nil
}

// Close takes the batch out of the kernel.
func (b *Batch) Close() error {
	var errs []error
	for _, mem := range b.mapped {
		errs = append(errs, unix.Munmap(mem))
	}
	if b.coll != nil {
		b.coll.Close()
	}
	return errors.Join(errs...)
}

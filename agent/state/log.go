package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Claims stand on disk as a log: a bucket of segments with rising numbers, each what one commit
// changed. So a change writes a few pages wherever its prefix lies, and a batch of ten thousand
// costs hardly more than one. Every commit also takes up segments at the log's tail, as long as
// most of the log is history: their claims that still hold are written anew at its head.
//
// A segment:
//
//	u32 CRC-32C of what follows | u8 version | uvarint texts, each uvarint length and bytes
//	uvarint entries, each:
//	  u8 flags | u8 prefix length | 4 or 16 bytes of address | uvarint list
//	  unless it removes: i64 created | uvarint actor | uvarint reason   (1 + index of the text)
//	  unless it removes or is forever: uvarint boot | u64 expires in that boot's clock
const segmentVersion = 1

const (
	entryRemove  = 1
	entryMonitor = 2
	entryIPv4    = 4
	entryForever = 8
)

// segmentEntries bounds a segment, and so what taking one up costs.
const segmentEntries = 4096

// entry is one change of the log. Texts stand in it as such.
type entry struct {
	remove  bool
	monitor bool
	key     key
	list    uint16
	boot    uint16
	created int64
	expires uint64 // of the boot's clock, or Forever
	words
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeSegment(entries []entry) []byte {
	index := map[string]uint64{"": 0}
	var list []string
	number := func(s string) uint64 {
		n, ok := index[s]
		if !ok {
			list = append(list, s)
			n = uint64(len(list))
			index[s] = n
		}
		return n
	}
	var last words // most entries of a segment say the same
	var actor, reason uint64
	body := make([]byte, 0, 32*len(entries))
	body = binary.AppendUvarint(body, uint64(len(entries)))
	for i := range entries {
		e := &entries[i]
		flags := byte(0)
		if e.remove {
			flags |= entryRemove
		}
		if e.monitor {
			flags |= entryMonitor
		}
		if e.key.v4 {
			flags |= entryIPv4
		}
		if e.expires == Forever {
			flags |= entryForever
		}
		body = append(body, flags, e.key.bits)
		if e.key.v4 {
			body = binary.BigEndian.AppendUint32(body, uint32(e.key.lo))
		} else {
			body = binary.BigEndian.AppendUint64(body, e.key.hi)
			body = binary.BigEndian.AppendUint64(body, e.key.lo)
		}
		body = binary.AppendUvarint(body, uint64(e.list))
		if e.remove {
			continue
		}
		body = binary.BigEndian.AppendUint64(body, uint64(e.created))
		if e.words != last {
			last, actor, reason = e.words, number(e.actor), number(e.reason)
		}
		body = binary.AppendUvarint(body, actor)
		body = binary.AppendUvarint(body, reason)
		if e.expires != Forever {
			body = binary.AppendUvarint(body, uint64(e.boot))
			body = binary.BigEndian.AppendUint64(body, e.expires)
		}
	}
	out := make([]byte, 4, len(body)+64)
	out = append(out, segmentVersion)
	out = binary.AppendUvarint(out, uint64(len(list)))
	for _, s := range list {
		out = binary.AppendUvarint(out, uint64(len(s)))
		out = append(out, s...)
	}
	out = append(out, body...)
	binary.BigEndian.PutUint32(out, crc32.Checksum(out[4:], castagnoli))
	return out
}

var errSegment = errors.New("is damaged")

// decodeSegment hands each entry to a function, in order. Nothing is handed over of a segment
// whose checksum is wrong.
func decodeSegment(b []byte, each func(*entry) error) error {
	if len(b) < 5 || crc32.Checksum(b[4:], castagnoli) != binary.BigEndian.Uint32(b) {
		return errSegment
	}
	if b[4] != segmentVersion {
		return fmt.Errorf("has version %d, of which this program knows nothing", b[4])
	}
	d := decoder{b: b[5:]}
	texts := make([]string, 1, 8)
	for n := d.uvarint(uint64(len(d.b))); n > 0; n-- {
		texts = append(texts, string(d.bytes(int(d.uvarint(uint64(len(d.b)))))))
	}
	for n := d.uvarint(uint64(len(d.b))); n > 0; n-- {
		var e entry
		flags := d.byte()
		e.remove, e.monitor = flags&entryRemove != 0, flags&entryMonitor != 0
		e.key.v4, e.key.bits = flags&entryIPv4 != 0, d.byte()
		most := uint8(128)
		if e.key.v4 {
			most = 32
			e.key.lo = uint64(binary.BigEndian.Uint32(d.bytes(4)))
		} else {
			e.key.hi = binary.BigEndian.Uint64(d.bytes(8))
			e.key.lo = binary.BigEndian.Uint64(d.bytes(8))
		}
		e.list = uint16(d.uvarint(1<<16 - 1))
		if !e.remove {
			e.created = int64(binary.BigEndian.Uint64(d.bytes(8)))
			e.actor = texts[d.uvarint(uint64(len(texts)-1))]
			e.reason = texts[d.uvarint(uint64(len(texts)-1))]
			e.expires = Forever
			if flags&entryForever == 0 {
				e.boot = uint16(d.uvarint(1<<16 - 1))
				e.expires = binary.BigEndian.Uint64(d.bytes(8))
			}
		}
		if d.bad || e.key.bits > most || e.key.shorter(int(e.key.bits)) != e.key {
			return errSegment
		}
		if err := each(&e); err != nil {
			return err
		}
	}
	if d.bad || len(d.b) != 0 {
		return errSegment
	}
	return nil
}

// decoder reads from the front of b; past its end it reads zeros and turns bad.
type decoder struct {
	b   []byte
	bad bool
}

var zeros [16]byte

func (d *decoder) bytes(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.bad, d.b = true, nil
		return zeros[:min(max(n, 0), len(zeros))]
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) byte() byte { return d.bytes(1)[0] }

func (d *decoder) uvarint(most uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > most {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

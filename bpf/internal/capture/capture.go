package capture

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Dir returns the folder of captures: LEVEE_CAPTURES, or else shared/captures beside the module's
// root, which is given. The second value says why there is none.
func Dir(root string) (string, error) {
	dir := os.Getenv("LEVEE_CAPTURES")
	if dir == "" {
		dir = filepath.Join(root, "..", "shared", "captures")
	}
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("no captures (LEVEE_CAPTURES names their folder): %w", err)
	}
	return dir, nil
}

// Shortest is the least that a program can be run with: an Ethernet header.
const Shortest = 14

// Longest is about the most: a first buffer, and the pages of a skb's fragments.
const Longest = 64 << 10

// File is a capture's frames, and how many packets are not among them.
type File struct {
	Frames  [][]byte
	Foreign map[string]int // by link type: neither Ethernet nor raw IP
	Short   int            // shorter than an Ethernet header
	Long    int            // longer than Longest
	Broken  error          // why the file could not be read to its end, if it could not
}

// Read reads a capture. Raw IP gets an Ethernet header. A file that breaks off yields what it has.
func Read(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()

	r := bufio.NewReader(f)
	magic, err := r.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	next, err := reader(r, string(magic) == "\x0a\x0d\x0d\x0a")
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	file := &File{Foreign: make(map[string]int)}
	for {
		data, link, err := next()
		if errors.Is(err, io.EOF) {
			return file, nil
		}
		if err != nil {
			file.Broken = err
			return file, nil
		}
		file.add(data, link)
	}
}

func reader(r io.Reader, ng bool) (func() ([]byte, layers.LinkType, error), error) {
	if !ng {
		p, err := pcapgo.NewReader(r)
		if err != nil {
			return nil, err
		}
		p.SetSnaplen(1 << 20) // some files say less than they hold
		return func() ([]byte, layers.LinkType, error) {
			data, _, err := p.ReadPacketData()
			return data, p.LinkType(), err
		}, nil
	}
	p, err := pcapgo.NewNgReader(r, pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		return nil, err
	}
	return func() ([]byte, layers.LinkType, error) {
		data, info, err := p.ReadPacketData()
		return data, linkOf(info), err
	}, nil
}

func linkOf(info gopacket.CaptureInfo) layers.LinkType {
	if len(info.AncillaryData) > 0 {
		if link, ok := info.AncillaryData[0].(layers.LinkType); ok {
			return link
		}
	}
	return layers.LinkTypeNull
}

func (f *File) add(data []byte, link layers.LinkType) {
	var ether []byte
	switch link {
	case layers.LinkTypeEthernet:
	case layers.LinkTypeRaw, 12, 14, layers.LinkTypeIPv4, layers.LinkTypeIPv6: // 12 and 14: raw IP of BSD
		ether = []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}
		if link == layers.LinkTypeIPv6 || link != layers.LinkTypeIPv4 && len(data) > 0 && data[0]>>4 == 6 {
			ether[12], ether[13] = 0x86, 0xDD
		}
	default:
		f.Foreign[link.String()]++
		return
	}
	frame := append(ether, data...)
	switch {
	case len(frame) < Shortest:
		f.Short++
	case len(frame) > Longest:
		f.Long++
	default:
		f.Frames = append(f.Frames, frame)
	}
}

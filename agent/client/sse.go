package client

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"time"
	"unicode/utf8"
)

// maxMessage bounds a message of a stream, and a line of it, in bytes.
const maxMessage = 1 << 20

var errLong = errors.New("a message of the stream is longer than 1 MiB")

// message is one message of a stream of server-sent events.
type message struct {
	id    string
	event string
	data  []byte
}

// decoder reads a stream of server-sent events as the HTML standard has it: section 9.2.6,
// "Interpreting an event stream".
type decoder struct {
	in    *bufio.Reader
	heard func()        // told of each line; may be nil
	retry time.Duration // that the stream asks for before the next connection; 0: it does not say
	id    string        // the last one, also of messages without data
	began bool
	cr    bool // the last line ended with one
}

func newDecoder(r io.Reader, heard func()) *decoder {
	return &decoder{in: bufio.NewReaderSize(r, 16<<10), heard: heard}
}

// next returns the next message that carries data. What the stream ends within is no message.
func (d *decoder) next() (message, error) {
	var m message
	var some bool // a line of data, even an empty one
	for {
		line, err := d.line()
		if err != nil {
			return message{}, err
		}
		if d.heard != nil {
			d.heard()
		}
		if len(line) == 0 {
			if some {
				m.id = d.id
				return m, nil
			}
			m = message{}
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "data":
			if len(m.data)+len(value) >= maxMessage {
				return message{}, errLong
			}
			if some {
				m.data = append(m.data, '\n')
			}
			m.data, some = append(m.data, value...), true
		case "event":
			m.event = string(value)
		case "id":
			if bytes.IndexByte(value, 0) < 0 {
				d.id = string(value)
			}
		case "retry":
			if n, err := strconv.ParseUint(string(value), 10, 31); err == nil {
				d.retry = time.Duration(n) * time.Millisecond
			}
		}
	}
}

// line reads a line without its end, which is CR, LF or both. It is good until the next call.
func (d *decoder) line() ([]byte, error) {
	var line []byte
	for {
		c, err := d.in.ReadByte()
		if err != nil {
			return nil, err
		}
		if c == '\n' || c == '\r' {
			// The LF of a CR LF may not be there yet, and is not to be waited for.
			if lf := d.cr && c == '\n' && len(line) == 0; lf {
				d.cr = false
				continue
			}
			d.cr = c == '\r'
			if !d.began {
				d.began = true
				line = bytes.TrimPrefix(line, []byte("\ufeff"))
			}
			if !utf8.Valid(line) {
				line = bytes.ToValidUTF8(line, []byte("\ufffd"))
			}
			return line, nil
		}
		if len(line) >= maxMessage {
			return nil, errLong
		}
		d.cr = false
		line = append(line, c)
	}
}

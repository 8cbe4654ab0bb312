package audit

import (
	"fmt"
	"net"
	"os"
	"time"
)

// Where copies can go beside the path of a syslog socket.
const (
	CopyJournald = "journald"
	CopySyslog   = "syslog"

	journalSocket = "/run/systemd/journal/socket"
	syslogSocket  = "/dev/log"
)

// NewSink returns what takes copies: journald, syslog for the host's syslog socket, or the path of
// another; nil where none is wanted. It connects when there is something to send.
func NewSink(to string) Sink {
	switch to {
	case "":
		return nil
	case CopyJournald:
		return &datagram{path: journalSocket, format: journalFormat}
	case CopySyslog:
		to = syslogSocket
	}
	return &datagram{path: to, format: syslogFormat}
}

// sendTimeout is how long a receiver may hold a record up. The libraries for journald and syslog wait
// without an end.
const sendTimeout = 100 * time.Millisecond

// datagram sends records to a Unix datagram socket.
type datagram struct {
	path   string
	format func(line []byte, failure bool) []byte
	conn   net.Conn
}

// Send sends a record, connecting anew where the receiver was restarted.
func (d *datagram) Send(line []byte, failure bool) (err error) {
	for range 2 {
		if d.conn == nil {
			if d.conn, err = net.DialTimeout("unixgram", d.path, sendTimeout); err != nil {
				return err
			}
		}
		if err = d.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err == nil {
			if _, err = d.conn.Write(d.format(line, failure)); err == nil {
				return nil
			}
		}
		_ = d.conn.Close() // the error before says more
		d.conn = nil
	}
	return err
}

// Close closes the connection.
func (d *datagram) Close() error {
	if d.conn == nil {
		return nil
	}
	return d.conn.Close()
}

// Severities of syslog and journald.
const (
	notice  = 5
	warning = 4
)

func severity(failure bool) int {
	if failure {
		return warning
	}
	return notice
}

// journalFormat is journald's native protocol; a record is one line, so that each field is.
func journalFormat(line []byte, failure bool) []byte {
	return fmt.Appendf(nil, "PRIORITY=%d\nSYSLOG_IDENTIFIER=levee-audit\nMESSAGE=%s\n", severity(failure), line)
}

// syslogFormat is RFC 3164's as local sockets take it, of the facility authpriv.
func syslogFormat(line []byte, failure bool) []byte {
	const authpriv = 10
	return fmt.Appendf(nil, "<%d>%s levee-audit[%d]: %s", authpriv<<3|severity(failure), time.Now().Format(time.Stamp), os.Getpid(), line)
}

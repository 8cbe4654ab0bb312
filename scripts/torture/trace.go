package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
)

// The roles in which this program starts itself again.
const (
	roleTrace  = "trace"  // runs the daemon and stops it at its system calls
	roleFilter = "filter" // has the kernel tell the tracer of the calls that write, and becomes the daemon
)

// What is done at a site.
const (
	doKill = "kill" // kill -9
	doFail = "fail" // the call is not made, and returns an error
)

// plan says at which site something happens to the daemon. Without a site it is only watched.
type plan struct {
	Site  string `json:"site,omitempty"`
	After bool   `json:"after,omitempty"` // when the call has been made, rather than before
	Do    string `json:"do,omitempty"`
	Errno int    `json:"errno,omitempty"` // for doFail
	Skip  int    `json:"skip,omitempty"`  // calls that are let through first
	Times int    `json:"times,omitempty"` // how often it happens; 0: always, from then on
}

// site is a place in the program that makes a system call which writes, told by who calls whom.
type site struct {
	Key   string   `json:"key"`
	Call  string   `json:"call"`
	Chain []string `json:"chain"` // innermost first
}

// String is the call and the functions of ours that lead to it.
func (s site) String() string {
	text := s.Call
	for _, f := range s.Chain {
		text += " < " + f
	}
	return text
}

// traceEvent is a line from the tracer.
type traceEvent struct {
	PID  int    `json:"pid,omitempty"`  // the daemon's, once
	Site *site  `json:"site,omitempty"` // seen for the first time
	Hit  bool   `json:"hit,omitempty"`  // the plan was carried out
	Err  string `json:"err,omitempty"`
}

// traceReader reads what the tracer tells.
type traceReader struct {
	first chan traceEvent
	mu    sync.Mutex
	sites []site
	hits  int
	done  chan struct{}
}

func newTraceReader(f *os.File) *traceReader {
	r := &traceReader{first: make(chan traceEvent, 1), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer f.Close()
		defer close(r.first)
		for lines := bufio.NewScanner(f); lines.Scan(); {
			var e traceEvent
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				e = traceEvent{Err: fmt.Sprintf("%v: %s", err, lines.Text())}
			}
			switch {
			case e.PID != 0 || e.Err != "":
				select {
				case r.first <- e:
				default:
				}
			case e.Site != nil:
				r.mu.Lock()
				r.sites = append(r.sites, *e.Site)
				r.mu.Unlock()
			case e.Hit:
				r.mu.Lock()
				r.hits++
				r.mu.Unlock()
			}
		}
	}()
	return r
}

func (r *traceReader) pid() (int, error) {
	e, ok := <-r.first
	switch {
	case !ok:
		return 0, errors.New("the tracer ended")
	case e.Err != "":
		return 0, errors.New(e.Err)
	}
	return e.PID, nil
}

// hit is how often the plan has been carried out so far.
func (r *traceReader) hit() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hits
}

// hitAll is how often it was carried out in a life that has ended.
func (r *traceReader) hitAll() int {
	<-r.done
	return r.hit()
}

// seen returns the sites once the daemon has ended.
func (r *traceReader) seen() []site {
	<-r.done
	return r.sites
}

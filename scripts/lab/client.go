package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

// clientOrder is what a legitimate client is to do.
type clientOrder struct {
	From, To netip.Addr
	Rate     int           // requests per second, each on a connection of its own
	Duration time.Duration // for so long requests are begun
	Timeout  time.Duration // that the client waits for one
}

// clientReport is what it saw. Requests that failed count with the timeout in the latencies: a
// client that gave up has waited, too.
type clientReport struct {
	Requests  int           `json:"requests"`
	Succeeded int           `json:"succeeded"`
	Median    time.Duration `json:"median_ns"`
	P99       time.Duration `json:"p99_ns"`
	Timeout   time.Duration `json:"timeout_ns"`
	Error     string        `json:"error,omitempty"` // the first
}

func (r clientReport) success() float64 {
	if r.Requests == 0 {
		return 0
	}
	return float64(r.Succeeded) / float64(r.Requests)
}

// request is the client: it begins requests at a steady rate, whether or not earlier ones have been
// answered, as independent visitors do.
func request(ctx context.Context, order clientOrder) clientReport {
	client := &http.Client{
		Timeout: order.Timeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: order.From.AsSlice()}}).DialContext,
		},
	}
	url := "http://" + net.JoinHostPort(order.To.String(), strconv.Itoa(serverPort)) + "/v1/orders/"
	var (
		mutex     sync.Mutex
		group     sync.WaitGroup
		latencies []time.Duration
		report    = clientReport{Timeout: order.Timeout}
	)
	ticker := time.NewTicker(time.Second / time.Duration(order.Rate))
	defer ticker.Stop()
	end := time.Now().Add(order.Duration)
	for now := range ticks(ctx, ticker.C) {
		if now.After(end) {
			break
		}
		report.Requests++
		id := report.Requests
		group.Go(func() {
			begun := time.Now()
			err := fetch(ctx, client, url+strconv.Itoa(id))
			took := time.Since(begun)
			mutex.Lock()
			defer mutex.Unlock()
			if err != nil {
				took = order.Timeout
				if report.Error == "" {
					report.Error = err.Error()
				}
			} else {
				report.Succeeded++
			}
			latencies = append(latencies, took)
		})
	}
	group.Wait()
	slices.Sort(latencies)
	if n := len(latencies); n > 0 {
		report.Median, report.P99 = latencies[n/2], latencies[min(n-1, n*99/100)]
	}
	return report
}

func ticks(ctx context.Context, c <-chan time.Time) func(func(time.Time) bool) {
	return func(yield func(time.Time) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case t := <-c:
				if !yield(t) {
					return
				}
			}
		}
	}
}

func fetch(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(req)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", response.Status)
	}
	return nil
}

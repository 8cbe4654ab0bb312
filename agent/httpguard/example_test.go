package httpguard_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"time"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/httpguard"
)

// Limits by address and by user, a route that costs more, failed logins, and a ban in the kernel for
// those who go on.
func Example() {
	daemon := client.New(client.Config{})
	defer daemon.Close()
	guard, err := httpguard.New(httpguard.Config{
		Limits: []httpguard.Limit{
			{Name: "address", Requests: 600, Per: time.Minute, Burst: 60},
			{Name: "user", Requests: 300, Per: time.Minute, Key: func(r *http.Request) string { return r.PathValue("user") }},
		},
		Cost: httpguard.Costs(map[string]int{"GET /search": 10}),
		Failed: func(r *http.Request, status int) bool {
			return r.URL.Path == "/login" && status == http.StatusUnauthorized
		},
		Failures:   httpguard.Threshold{Count: 10, Per: time.Minute},
		Ban:        httpguard.Ban{First: 10 * time.Minute, Factor: 4, Longest: 24 * time.Hour},
		Escalation: httpguard.Escalation{Daemon: daemon, Origin: "api:shop"},
	})
	if err != nil {
		panic(err)
	}
	defer guard.Close()
	h := guard.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "[]") }))

	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/search", nil))
	fmt.Println(w.Code, w.Header().Get("RateLimit-Policy"))
	fmt.Println(w.Header().Get("RateLimit"))
	// Output:
	// 200 "address";q=60;w=6
	// "address";r=50;t=1
}

// Behind a proxy the client is who the proxy says, and is refused here: the kernel would only see
// the proxy.
func ExampleConfig_proxy() {
	guard, err := httpguard.New(httpguard.Config{
		Header:         httpguard.Forwarded,
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Limits:         []httpguard.Limit{{Name: "address", Requests: 60, Per: time.Minute}},
	})
	if err != nil {
		panic(err)
	}
	defer guard.Close()
	h := guard.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		c, _ := httpguard.ClientOf(r.Context())
		fmt.Println(c.Addr, c.Proxied)
	}))
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "10.0.0.1:4711"
	r.Header.Set("Forwarded", `for=198.51.100.99, for="[2001:db8::7]:80"`) // the first was written by the client itself
	h.ServeHTTP(httptest.NewRecorder(), r)
	// Output: 2001:db8::7 true
}

package main

import (
	"github.com/spf13/pflag"

	"github.com/levee-xdp/levee/agent/client"
)

// remote is what flags say of a daemon on another host.
type remote struct {
	address, tokenFile, ca, cert, key string
}

func (a *app) remoteFlags(flags *pflag.FlagSet) {
	flags.StringVar(&a.remote.address, "address", "", "ask a daemon on another host: https://HOST:PORT (default $LEVEE_ADDRESS)")
	flags.StringVar(&a.remote.tokenFile, "token-file", "", "with --address: the file that has the token (default $LEVEE_TOKEN_FILE)")
	flags.StringVar(&a.remote.ca, "ca", "", "with --address: the PEM file of whom to trust (default $LEVEE_CA, or the system's)")
	flags.StringVar(&a.remote.cert, "cert", "", "with --address: the PEM file of a client certificate (default $LEVEE_CERT)")
	flags.StringVar(&a.remote.key, "key", "", "with --address: the PEM file of its key (default $LEVEE_KEY)")
}

// checkRemote lets the environment speak where flags do not, and checks that they say one thing.
func (a *app) checkRemote() error {
	r := &a.remote
	if r.address != "" && a.socket != "" {
		return usage("--address and --socket name two daemons; give one of them")
	}
	if a.socket == "" && r.address == "" {
		r.address = a.getenv("LEVEE_ADDRESS")
	}
	if r.address == "" {
		if r.tokenFile != "" || r.ca != "" || r.cert != "" || r.key != "" {
			return usage("--token-file, --ca, --cert and --key go with --address; on the socket the kernel says who asks")
		}
		if a.socket == "" {
			a.socket = a.getenv("LEVEE_SOCKET")
		}
		return nil
	}
	for name, to := range map[string]*string{"LEVEE_TOKEN_FILE": &r.tokenFile, "LEVEE_CA": &r.ca, "LEVEE_CERT": &r.cert, "LEVEE_KEY": &r.key} {
		if *to == "" {
			*to = a.getenv(name)
		}
	}
	return nil
}

// clientConfig says whom to ask, and as whom.
func (a *app) clientConfig() client.Config {
	c := client.Config{Agent: "levee/" + release()}
	if r := a.remote; r.address != "" {
		c.URL, c.TokenFile, c.CA, c.Certificate, c.Key = r.address, r.tokenFile, r.ca, r.cert, r.key
		return c
	}
	c.Socket = a.socketPath()
	return c
}

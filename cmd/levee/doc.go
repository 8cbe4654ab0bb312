// Command levee is the shield's one binary: `levee run` is the daemon, every other verb is a client
// of its API. It decides nothing: it reads what people type, asks, and shows the answer.
package main

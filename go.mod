module github.com/levee-xdp/levee

go 1.26.0

require github.com/cilium/ebpf v0.22.0

require (
	github.com/danielgtaylor/huma/v2 v2.37.2 // indirect
	github.com/docker/go-units v0.5.0 // indirect
	github.com/rogpeppe/go-internal v1.16.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

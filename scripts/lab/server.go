package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"
)

// serve is the API that the lab protects: orders, by number. It runs until its process is ended.
func serve(started func()) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
		if err != nil {
			http.Error(w, "an order's id is a number", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"id": id, "state": "shipped", "items": []string{"sandbag", "shovel", "lantern"},
		})
	})
	listener, err := net.Listen("tcp", net.JoinHostPort("::", strconv.Itoa(serverPort))) // IPv4, too
	if err != nil {
		return err
	}
	started()
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

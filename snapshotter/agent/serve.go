package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/apparate/apparate/snapshotter/host"
)

// serve answers probes, and hands on the daemon's metrics, until the returned function
// is called. The agent is alive while it answers, and ready while lazy images work. It
// is ready, too, where the machine cannot mount lazily and was left as it is: a few
// such nodes must not hold up the upgrade of all others, and which they are is in their
// conditions.
func (a *Agent) serve() (stop func(), err error) {
	if a.Listen == "" {
		return func() {}, nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") }) // who asked has gone
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		s := a.machine.Status()
		if s.State != host.Ready && s.State != host.NotLazy {
			http.Error(w, string(s.State)+": "+s.Message, http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok") // as above
	})
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		if err := a.machine.Metrics(r.Context(), &b); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = w.Write(b.Bytes()) // as above
	})
	l, err := net.Listen("tcp", a.Listen)
	if err != nil {
		return nil, fmt.Errorf("--listen-address: %w", err)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { // ends with the server
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.Logger.Error("probes are not answered any more", "error", err)
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			a.Logger.Warn("close the address of the probes", "error", err)
		}
	}, nil
}

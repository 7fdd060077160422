package watch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// Endpoint is the source that is told: a server with a [Receiver].
type Endpoint struct {
	Receiver
	// Address is the host:port to serve on.
	Address string
	// CertFile and KeyFile are PEM files for TLS, read again when they change;
	// empty means plain HTTP.
	CertFile, KeyFile string
	Log               logr.Logger

	addr atomic.Pointer[net.Addr]
}

var _ Source = (*Endpoint)(nil)

// slow is how long a sender may take for its request: it must not hold one of the
// places, of which there are few.
const slow = 10 * time.Second

// Addr is the address that is served on; nil while nothing is.
func (e *Endpoint) Addr() net.Addr {
	if a := e.addr.Load(); a != nil {
		return *a
	}
	return nil
}

// Run serves notifications until the context ends, and then lets those that are
// being followed come to their end.
func (e *Endpoint) Run(ctx context.Context, report Report) error {
	e.Report = report
	l, err := net.Listen("tcp", e.Address)
	if err != nil {
		return fmt.Errorf("the address for notifications: %w", err)
	}
	addr := l.Addr()
	if e.CertFile != "" {
		w, err := certwatcher.New(e.CertFile, e.KeyFile)
		if err != nil {
			return errors.Join(fmt.Errorf("the certificate for notifications: %w", err), l.Close())
		}
		go func() {
			if err := w.Start(ctx); err != nil {
				e.Log.Error(err, "following the certificate for notifications")
			}
		}()
		l = tls.NewListener(l, &tls.Config{GetCertificate: w.GetCertificate, MinVersion: tls.VersionTLS12})
	}
	mux := http.NewServeMux()
	mux.Handle(PathPrefix, &e.Receiver)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: slow, ReadTimeout: slow, WriteTimeout: slow + workLimit, MaxHeaderBytes: 32 << 10,
		// Not the context of Run: what is being followed comes to its end.
		BaseContext: func(net.Listener) context.Context { return log.IntoContext(context.WithoutCancel(ctx), e.Log) },
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), slow)
		defer cancel()
		stopped <- server.Shutdown(end)
	}()
	e.Log.Info("notifications are taken", "address", addr.String(), "path", PathPrefix+"<namespace>/<registry>")
	e.addr.Store(&addr)
	defer e.addr.Store(nil)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving notifications: %w", err)
	}
	return <-stopped
}

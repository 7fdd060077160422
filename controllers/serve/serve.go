// Package serve is the HTTP server behind each of the operator's addresses that others
// send to: with limits against who is slow, and certificates that may change.
package serve

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

// Server serves one handler on one address.
type Server struct {
	// What is served, for errors and the log: "notifications".
	What string
	// Address is the host:port to serve on.
	Address string
	// CertFile and KeyFile are PEM files for TLS, read again when they change;
	// empty means plain HTTP.
	CertFile, KeyFile string
	// Slow is how long a sender may take for its request, Work how long an answer may
	// take after that.
	Slow, Work time.Duration
	Log        logr.Logger

	addr atomic.Pointer[net.Addr]
}

// Addr is the address that is served on; nil while nothing is.
func (s *Server) Addr() net.Addr {
	if a := s.addr.Load(); a != nil {
		return *a
	}
	return nil
}

// Run serves until the context ends, and then lets requests that are being answered
// come to their end.
func (s *Server) Run(ctx context.Context, h http.Handler) error {
	l, err := net.Listen("tcp", s.Address)
	if err != nil {
		return fmt.Errorf("the address for %s: %w", s.What, err)
	}
	addr := l.Addr()
	if s.CertFile != "" {
		w, err := certwatcher.New(s.CertFile, s.KeyFile)
		if err != nil {
			return errors.Join(fmt.Errorf("the certificate for %s: %w", s.What, err), l.Close())
		}
		go func() {
			if err := w.Start(ctx); err != nil {
				s.Log.Error(err, "following the certificate for "+s.What)
			}
		}()
		l = tls.NewListener(l, &tls.Config{GetCertificate: w.GetCertificate, MinVersion: tls.VersionTLS12})
	}
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: s.Slow, ReadTimeout: s.Slow, WriteTimeout: s.Slow + s.Work, MaxHeaderBytes: 32 << 10,
		// Not the context of Run: what is being answered comes to its end.
		BaseContext: func(net.Listener) context.Context { return log.IntoContext(context.WithoutCancel(ctx), s.Log) },
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Slow)
		defer cancel()
		stopped <- server.Shutdown(end)
	}()
	s.Log.Info(s.What+" are taken", "address", addr.String())
	s.addr.Store(&addr)
	defer s.addr.Store(nil)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving %s: %w", s.What, err)
	}
	return <-stopped
}

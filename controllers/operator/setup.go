package operator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/accelerationrule"
	"github.com/apparate/apparate/controllers/conversion"
	"github.com/apparate/apparate/controllers/registry"
)

// uncached are the kinds that are read from the server.
func uncached() []client.Object { return []client.Object{&corev1.Secret{}, &corev1.ConfigMap{}} }

// setup adds everything to the manager.
func (p *parts) setup(m manager.Manager, o Options) error {
	// Events of the core group: those of events.k8s.io need Kubernetes 1.19.
	events := m.GetEventRecorderFor("apparate-operator") //nolint:staticcheck // see above; the operator is supported from 1.16 on
	var runner conversion.Runner = &conversion.InProcess{Access: p.store, TempDir: o.TempDir, Workers: o.Processors}
	if o.Mode == ModeJob {
		runner = &conversion.Jobs{Client: m.GetClient(), Reader: m.GetAPIReader(), Options: o.Job, Timeout: o.Timeout}
	}
	conversions := &conversion.Reconciler{
		Client: m.GetClient(), Access: p.store, Pool: p.pool, Runner: runner,
		Wanted: p.book.Wanted, Moved: p.moved, Ended: p.ended, Events: events,
		Metrics: conversion.NewMetrics(o.registerer(), p.pool, p.backlog),
		Timeout: o.Timeout, MaxAttempts: o.MaxAttempts, FirstRetry: o.FirstRetry, MaxRetry: o.MaxRetry, Now: time.Now,
	}
	rules := &accelerationrule.Reconciler{
		Client: m.GetClient(), Counts: &accelerationrule.Counts{Book: p.book, Inventory: p.inventory}, Events: events,
	}
	registries := &registry.Reconciler{
		Client: m.GetClient(), Store: p.store, Sessions: p.sessions, Scanner: p.scanner, Events: events, Interval: o.CheckInterval,
	}
	janitor := &conversion.Janitor{Client: m.GetClient(), MaxAge: o.HistoryAge, MaxCount: o.HistoryCount, Interval: time.Minute, Now: time.Now}
	return errors.Join(
		conversions.Setup(m),
		rules.Setup(m, p.scannedRules),
		registries.Setup(m, p.scannedRegistry),
		m.Add(p.book),
		m.Add(janitor),
		m.Add(everywhere(p.followBacklog(m))),
		m.Add(manager.RunnableFunc(func(ctx context.Context) error { return p.scanner.Run(ctx, p.dispatcher.Report) })),
		p.serve(m, o),
		p.probes(m, o),
	)
}

// ended tells the inventory of a conversion: its tag now has an accelerated image.
func (p *parts) ended(r *v1alpha1.Registry, c *v1alpha1.ImageConversion) {
	if r != nil && conversion.Succeeded(c) {
		key := client.ObjectKeyFromObject(r)
		p.inventory.Accelerated(key, c.Spec.Repository, c.Spec.Tag)
		p.changed(p.scannedRules, key)
	}
}

// everywhere is a runnable for every replica, not only for the leader.
type everywhere func(context.Context) error

// Start implements manager.Runnable.
func (f everywhere) Start(ctx context.Context) error { return f(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (everywhere) NeedLeaderElection() bool { return false }

// followBacklog keeps the backlog up to date from the cache.
func (p *parts) followBacklog(m manager.Manager) func(context.Context) error {
	return func(ctx context.Context) error {
		informer, err := m.GetCache().GetInformer(ctx, &v1alpha1.ImageConversion{})
		if err != nil {
			return fmt.Errorf("following ImageConversions: %w", err)
		}
		if _, err := informer.AddEventHandler(p.backlog); err != nil {
			return fmt.Errorf("following ImageConversions: %w", err)
		}
		<-ctx.Done()
		return nil
	}
}

// serve adds the server of notifications, in every replica.
func (p *parts) serve(m manager.Manager, o Options) error {
	if o.NotificationAddress == "0" {
		return nil
	}
	return m.Add(everywhere(func(ctx context.Context) error {
		l, err := net.Listen("tcp", o.NotificationAddress)
		if err != nil {
			return fmt.Errorf("--notification-address: %w", err)
		}
		if o.NotificationCert != "" {
			w, err := certwatcher.New(o.NotificationCert, o.NotificationKey)
			if err != nil {
				return errors.Join(fmt.Errorf("--notification-cert: %w", err), l.Close())
			}
			go func() {
				if err := w.Start(ctx); err != nil {
					log.FromContext(ctx).Error(err, "following the certificate for notifications")
				}
			}()
			l = tls.NewListener(l, &tls.Config{GetCertificate: w.GetCertificate, MinVersion: tls.VersionTLS12})
		}
		return p.listen(ctx, l, o)
	}))
}

// listen serves notifications until the context ends.
func (p *parts) listen(ctx context.Context, l net.Listener, o Options) error {
	// A sender that is slow must not hold a place: there is a bound on them.
	const patience = 10 * time.Second
	server := &http.Server{
		Handler: p.handler(), ReadHeaderTimeout: patience, ReadTimeout: patience, WriteTimeout: 2 * patience,
		MaxHeaderBytes: 32 << 10,
		BaseContext:    func(net.Listener) context.Context { return log.IntoContext(ctx, o.Log.WithName("notifications")) },
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		stopped <- server.Shutdown(end)
	}()
	o.Log.Info("notifications are taken", "address", l.Addr().String(), "path", "/v1/notifications/<namespace>/<registry>")
	p.serving.Store(true)
	defer p.serving.Store(false)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving notifications: %w", err)
	}
	return <-stopped
}

// probes adds health ("restart me") and readiness ("send me notifications").
func (p *parts) probes(m manager.Manager, o Options) error {
	return errors.Join(
		m.AddHealthzCheck("reconciling", p.alive()),
		m.AddReadyzCheck("cache", func(r *http.Request) error {
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			if !m.GetCache().WaitForCacheSync(ctx) {
				return errors.New("the cache is not in step with the API server yet")
			}
			return nil
		}),
		m.AddReadyzCheck("notifications", func(*http.Request) error {
			if o.NotificationAddress != "0" && !p.serving.Load() {
				return errors.New("notifications are not taken yet")
			}
			return nil
		}),
	)
}

// alive fails when a lock that every part needs is never given back. Whether
// registries and the API server answer is no reason to be restarted.
func (p *parts) alive() healthz.Checker {
	return func(r *http.Request) error {
		done := make(chan error, 1)
		go func() {
			p.pool.Counts()
			_, _ = p.inventory.Version(client.ObjectKey{})
			done <- nil
		}()
		select {
		case err := <-done:
			return err
		case <-r.Context().Done():
			return errors.New("the operator does not answer itself")
		case <-time.After(5 * time.Second):
			return errors.New("the operator does not answer itself")
		}
	}
}

package operator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/accelerationrule"
	"github.com/apparate/apparate/controllers/conversion"
	"github.com/apparate/apparate/controllers/pullsecret"
	"github.com/apparate/apparate/controllers/registry"
	"github.com/apparate/apparate/controllers/status"
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
		p.pullSecrets(m, o, events),
		p.profiles(m, o, events),
		m.Add(manager.RunnableFunc(func(ctx context.Context) error { return p.scanner.Run(ctx, p.dispatcher.Report) })),
		p.serve(m, o),
		p.probes(m, o),
	)
}

// pullSecrets adds the keeper of pull secrets, in the leader alone.
func (*parts) pullSecrets(m manager.Manager, o Options, events status.Recorder) error {
	if o.PullSecrets == "" {
		return nil
	}
	return m.Add(pullsecret.New(m.GetConfig(), o.PullSecrets, events, o.registerer(), o.Log))
}

// ended tells the inventory of a conversion: its tag now has an accelerated image.
func (p *parts) ended(r *v1alpha1.Registry, c *v1alpha1.ImageConversion) {
	if r != nil && conversion.Succeeded(c) {
		key := client.ObjectKeyFromObject(r)
		p.inventory.Accelerated(key, c.Spec.Repository, c.Spec.Tag)
		p.changed(p.scannedRules, key)
		if p.keeper != nil {
			p.keeper.Converted(c)
		}
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

// serve adds the endpoint for notifications, in every replica.
func (p *parts) serve(m manager.Manager, o Options) error {
	if o.NotificationAddress == "0" {
		return nil
	}
	p.endpoint.Address, p.endpoint.CertFile, p.endpoint.KeyFile = o.NotificationAddress, o.NotificationCert, o.NotificationKey
	p.endpoint.Log = o.Log.WithName("notifications")
	return m.Add(everywhere(func(ctx context.Context) error { return p.endpoint.Run(ctx, p.dispatcher.Report) }))
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
			if o.NotificationAddress != "0" && p.endpoint.Addr() == nil {
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

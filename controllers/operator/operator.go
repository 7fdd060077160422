// Package operator puts the parts of the control plane together: the one place
// that shows what there is and who knows whom.
//
//	registries ── notifications ─► watch.Receiver ─┐
//	           ◄─ list, look ───── watch.Scanner ──┤ pushes
//	                                               ▼
//	rules ──► accelerationrule.Book ──► Dispatcher ──► ImageConversions (API server)
//	                                                        │
//	                                    conversion.Reconciler ─► Pool ─► converter
//
//	nodes ── samples of starts ──► profile.Receiver ─► Keeper ─► a profile beside the image
package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/accelerationrule"
	"github.com/apparate/apparate/controllers/conversion"
	"github.com/apparate/apparate/controllers/profile"
	"github.com/apparate/apparate/controllers/registry"
	"github.com/apparate/apparate/controllers/watch"
	"github.com/apparate/apparate/converter/fault"
	oci "github.com/apparate/apparate/converter/registry"
)

// Options configure the operator. The zero value of a field is not its default:
// start from [Defaults].
type Options struct {
	// Namespaces to watch; none means all.
	Namespaces []string
	// MetricsAddress, ProbeAddress and NotificationAddress are host:port to serve
	// on; "0" serves nothing.
	MetricsAddress, ProbeAddress, NotificationAddress string
	// NotificationCert and NotificationKey are PEM files for TLS on the
	// notification endpoint, read again when they change; empty means plain HTTP,
	// for a cluster whose ingress ends TLS.
	NotificationCert, NotificationKey string
	// Samples says where samples of starts are taken.
	Samples SampleOptions
	// LeaderElect lets one of several replicas work; LeaderNamespace is where its
	// Lease is, empty for the namespace of the operator's pod.
	LeaderElect     bool
	LeaderNamespace string
	// Mode is how conversions run: in the operator ("process") or each in a
	// Kubernetes Job ("job").
	Mode string
	Job  conversion.JobOptions
	// Workers is how many conversions run at once, WorkersPerRegistry how many of
	// one registry. Processors is how many compress a layer; 0 means all.
	Workers, WorkersPerRegistry, Processors int
	// TempDir is where layers wait for their upload; empty means the system's.
	TempDir string
	// Timeout bounds an attempt; MaxAttempts, FirstRetry and MaxRetry say how often
	// and when it is repeated after a failure that may pass.
	Timeout              time.Duration
	MaxAttempts          int
	FirstRetry, MaxRetry time.Duration
	// HistoryAge and HistoryCount (of each namespace) bound the finished
	// conversions that are kept.
	HistoryAge   time.Duration
	HistoryCount int
	// MaxScanned and MaxTotal bound the conversions that wait.
	MaxScanned, MaxTotal int
	// ScanQPS and ScanParallel are the pace at which one registry is asked.
	ScanQPS      float64
	ScanParallel int
	// MaxRecheck is the longest time that a known tag is believed.
	MaxRecheck time.Duration
	// CheckInterval is how often registries and their Secrets are looked at.
	CheckInterval time.Duration
	// QPS is the pace of requests to the API server.
	QPS float64
	// PullSecrets is a file with the pull secrets to keep in namespaces, see
	// pullsecret.Parse; empty means that none are kept.
	PullSecrets string
	Log         logr.Logger
	// Metrics is where metrics are registered; nil means what MetricsAddress serves.
	Metrics prometheus.Registerer
}

// Modes of converting.
const (
	ModeProcess = "process"
	ModeJob     = "job"
)

// Defaults are the options of an operator for a cluster of usual size.
func Defaults() Options {
	return Options{
		MetricsAddress: ":8080", ProbeAddress: ":8081", NotificationAddress: ":8082",
		Samples:     SampleOptions{Address: "0"},
		LeaderElect: true, Mode: ModeProcess, Job: conversion.DefaultJobOptions(),
		Workers: 4, WorkersPerRegistry: 2,
		Timeout: time.Hour, MaxAttempts: 12, FirstRetry: 5 * time.Second, MaxRetry: 30 * time.Minute,
		HistoryAge: 7 * 24 * time.Hour, HistoryCount: 2000,
		MaxScanned: 1000, MaxTotal: 20000,
		ScanQPS: 50, ScanParallel: 4, MaxRecheck: time.Hour,
		CheckInterval: time.Minute, QPS: 50,
	}
}

// Check returns what is wrong with the options, naming the flag.
func (o *Options) Check() error {
	switch {
	case o.Mode != ModeProcess && o.Mode != ModeJob:
		return fmt.Errorf("--conversion-mode %q: use %s or %s", o.Mode, ModeProcess, ModeJob)
	case o.Mode == ModeJob && o.Job.Image == "":
		return errors.New("--job-image is missing: name the operator's own image, which the Jobs run")
	case o.Workers < 1 || o.WorkersPerRegistry < 1:
		return errors.New("--workers and --workers-per-registry must be at least 1")
	case (o.NotificationCert == "") != (o.NotificationKey == ""):
		return errors.New("--notification-cert and --notification-key belong together: give both or none")
	case o.MaxAttempts < 1 || o.FirstRetry <= 0 || o.MaxRetry < o.FirstRetry:
		return errors.New("--max-attempts must be at least 1, --first-retry more than 0 and at most --max-retry")
	case o.Timeout <= 0 || o.CheckInterval <= 0:
		return errors.New("--conversion-timeout and --check-interval must be more than 0")
	}
	return o.Samples.check()
}

func (o *Options) registerer() prometheus.Registerer {
	if o.Metrics != nil {
		return o.Metrics
	}
	return metrics.Registry
}

// Scheme has the kinds that the operator works with.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	return s, errors.Join(clientscheme.AddToScheme(s), v1alpha1.AddToScheme(s))
}

// New puts the operator together; its Start runs it.
func New(kube *rest.Config, o Options) (manager.Manager, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	m, err := newManager(kube, o)
	if err != nil {
		return nil, err
	}
	for name, f := range conversion.Indexers() {
		if err := m.GetFieldIndexer().IndexField(context.Background(), &v1alpha1.ImageConversion{}, name, f); err != nil {
			return nil, fmt.Errorf("index %s: %w", name, err)
		}
	}
	// All at once: servers tell the end of a first list about once a second.
	for _, o := range []client.Object{&v1alpha1.Registry{}, &v1alpha1.AccelerationRule{}, &v1alpha1.ImageConversion{}} {
		if _, err := m.GetCache().GetInformer(context.Background(), o, ctrlcache.BlockUntilSynced(false)); err != nil {
			return nil, fmt.Errorf("following %T (are the CRDs installed?): %w", o, err)
		}
	}
	p := newParts(m, o)
	if err := p.setup(m, o); err != nil {
		return nil, err
	}
	return m, nil
}

func newManager(kube *rest.Config, o Options) (manager.Manager, error) {
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	kube = rest.CopyConfig(kube)
	kube.QPS, kube.Burst = float32(o.QPS), int(2*o.QPS)
	kube.UserAgent = "apparate-operator"
	namespaces := map[string]ctrlcache.Config{}
	for _, n := range o.Namespaces {
		namespaces[n] = ctrlcache.Config{}
	}
	skipNames := true // several operators in one test process
	return manager.New(kube, manager.Options{
		Scheme: scheme, Logger: o.Log,
		Metrics:                       metricsserver.Options{BindAddress: o.MetricsAddress},
		HealthProbeBindAddress:        o.ProbeAddress,
		LeaderElection:                o.LeaderElect,
		LeaderElectionID:              "apparate-operator." + v1alpha1.Group,
		LeaderElectionNamespace:       o.LeaderNamespace,
		LeaderElectionReleaseOnCancel: true,
		Controller:                    config.Controller{SkipNameValidation: &skipNames},
		Cache: ctrlcache.Options{
			DefaultNamespaces: namespaces,
			// Who wrote which field is half of an object's size, and read by nobody.
			DefaultTransform: ctrlcache.TransformStripManagedFields(),
		},
		// Secrets and ConfigMaps are read one by one: the operator may not list them.
		Client: client.Options{Cache: &client.CacheOptions{DisableFor: uncached()}},
	})
}

// parts are the pieces and their acquaintances.
type parts struct {
	store      *registry.Store
	sessions   *registry.Sessions
	book       *accelerationrule.Book
	inventory  *watch.Inventory
	scanner    *watch.Scanner
	backlog    *conversion.Backlog
	pool       *conversion.Pool
	dispatcher *accelerationrule.Dispatcher
	endpoint   *watch.Endpoint
	metrics    *watch.Metrics
	keeper     *profile.Keeper // nil where no profiles are made
	// Events of scans, for the reconcilers of registries and of rules.
	scannedRegistry, scannedRules chan event.TypedGenericEvent[types.NamespacedName]
}

func newParts(m manager.Manager, o Options) *parts {
	p := &parts{
		store:           &registry.Store{Reader: m.GetAPIReader(), Keep: min(15*time.Second, o.CheckInterval/2)},
		book:            accelerationrule.NewBook(m.GetCache()),
		inventory:       watch.NewInventory(),
		backlog:         &conversion.Backlog{},
		pool:            &conversion.Pool{Workers: o.Workers, PerRegistry: o.WorkersPerRegistry},
		metrics:         watch.NewMetrics(o.registerer(), time.Now),
		scannedRegistry: make(chan event.TypedGenericEvent[types.NamespacedName], 256),
		scannedRules:    make(chan event.TypedGenericEvent[types.NamespacedName], 256),
	}
	p.sessions = &registry.Sessions{Store: p.store, Limit: oci.SessionLimit{QPS: o.ScanQPS, Burst: int(2 * o.ScanQPS), Parallel: o.ScanParallel}}
	p.scanner = &watch.Scanner{
		Interest: p.book, Inventory: p.inventory, MaxRecheck: o.MaxRecheck, Now: time.Now,
		Sessions: func(ctx context.Context, key types.NamespacedName) (watch.Session, error) {
			return p.session(ctx, m.GetClient(), key)
		},
		Done: p.scanned, Gone: p.metrics.Forget,
	}
	p.book.Changed = func(key types.NamespacedName) {
		p.scanner.Nudge(key)
		p.changed(p.scannedRules, key)
	}
	p.dispatcher = &accelerationrule.Dispatcher{
		Client: m.GetClient(), Book: p.book, Sessions: p.sessions, Inventory: p.inventory, Lost: p.scanner.Nudge, Now: time.Now,
		Queue:   &conversion.Queue{Client: m.GetClient(), MaxScanned: o.MaxScanned, MaxTotal: o.MaxTotal, Backlog: p.backlog},
		Metrics: accelerationrule.NewMetrics(o.registerer()),
	}
	p.endpoint = &watch.Endpoint{Receiver: watch.Receiver{
		Lost: p.scanner.Nudge, Count: p.metrics.Notification, Now: time.Now,
		Secrets: func(ctx context.Context, key types.NamespacedName) ([][]byte, error) {
			return p.secrets(ctx, m.GetClient(), key)
		},
	}}
	return p
}

// session finds the session of a registry for a scan.
func (p *parts) session(ctx context.Context, c client.Client, key types.NamespacedName) (*oci.Session, error) {
	var r v1alpha1.Registry
	if err := c.Get(ctx, key, &r); err != nil {
		return nil, err
	}
	return p.sessions.Get(ctx, &r)
}

// secrets finds the tokens of a registry for a notification.
func (p *parts) secrets(ctx context.Context, c client.Client, key types.NamespacedName) ([][]byte, error) {
	var r v1alpha1.Registry
	if err := c.Get(ctx, key, &r); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	secrets, err := p.store.WebhookSecrets(ctx, &r)
	var mistake *registry.SecretError
	if errors.As(err, &mistake) {
		return nil, nil // the Registry's status tells
	}
	return secrets, err
}

// scanned tells the reconcilers of a scan.
func (p *parts) scanned(key types.NamespacedName, r watch.ScanResult) {
	p.metrics.Scan(key, r)
	p.changed(p.scannedRegistry, key)
	p.changed(p.scannedRules, key)
}

// changed sends an event; when nobody has taken the last 256 there is no need.
func (p *parts) changed(c chan<- event.TypedGenericEvent[types.NamespacedName], key types.NamespacedName) {
	select {
	case c <- event.TypedGenericEvent[types.NamespacedName]{Object: key}:
	default:
	}
}

// moved says whether a conversion's tag has another digest now.
func (p *parts) moved(ctx context.Context, r *v1alpha1.Registry, c *v1alpha1.ImageConversion) (bool, error) {
	s, err := p.sessions.Get(ctx, r)
	if err != nil {
		return false, err
	}
	_, changed, err := s.Look(ctx, c.Spec.Repository, c.Spec.Tag, c.Spec.Digest)
	if fault.KindOf(err) == fault.NotFound {
		return true, nil
	}
	return changed, err
}

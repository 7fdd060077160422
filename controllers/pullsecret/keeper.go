package pullsecret

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/apparate/apparate/controllers/status"
)

// Keeper runs all of it. It is a manager.Runnable for the leader alone, with a
// cache of its own: where its rights are missing nothing else stands still, and
// the list is for all namespaces, also where the operator looks for Registries in
// some only.
type Keeper struct {
	// Kube is the API server; a change of a password in a thousand namespaces is a
	// thousand writes, which QPS spreads out.
	Kube *rest.Config
	// Path is the file with the list, read again every Interval.
	Path     string
	Interval time.Duration
	Events   status.Recorder
	Metrics  *Metrics
	Log      logr.Logger
}

// New makes a keeper for the file at path.
func New(kube *rest.Config, path string, events status.Recorder, r prometheus.Registerer, log logr.Logger) *Keeper {
	kube = rest.CopyConfig(kube)
	// Its own pace, so that neither conversions nor pull secrets wait for each other.
	kube.QPS, kube.Burst = 200, 400
	return &Keeper{Kube: kube, Path: path, Interval: 2 * time.Second, Events: events, Metrics: NewMetrics(r), Log: log.WithName("pull-secrets")}
}

// Start implements manager.Runnable.
func (k *Keeper) Start(ctx context.Context) error {
	changed := make(chan event.GenericEvent, 1)
	f := &Follower{Path: k.Path, Interval: k.Interval, Log: k.Log, Metrics: k.Metrics}
	go f.Run(ctx, func() {
		select {
		case changed <- event.GenericEvent{Object: metadata("Namespace")}:
		default: // one is waiting already
		}
	})
	for {
		err := k.run(ctx, f.Config, changed)
		if ctx.Err() != nil {
			return nil
		}
		k.Metrics.failed("NotFollowing")
		k.Log.Error(err, "pull secrets are not kept for now (is the ClusterRole apparate-pull-secrets bound?)")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Second):
		}
	}
}

// run follows the cluster until ctx ends or that fails.
func (k *Keeper) run(ctx context.Context, list func() *Config, changed <-chan event.GenericEvent) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seen, err := k.newCache()
	if err != nil {
		return err
	}
	c, err := client.New(k.Kube, client.Options{Scheme: clientscheme.Scheme})
	if err != nil {
		return fmt.Errorf("a client for pull secrets: %w", err)
	}
	r := &Reconciler{Cache: seen, Client: c, List: list, Events: k.Events, Metrics: k.Metrics}
	skip := true // it may be started again
	ctl, err := controller.NewUnmanaged("pull-secrets", controller.Options{
		Reconciler: r, MaxConcurrentReconciles: 8, SkipNameValidation: &skip,
		Logger: k.Log, LogConstructor: func(req *reconcile.Request) logr.Logger {
			if req == nil {
				return k.Log
			}
			return k.Log.WithValues("namespace", req.Name)
		},
	})
	if err != nil {
		return err
	}
	if err := k.watch(ctl, seen, changed); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- seen.Start(ctx) }()
	err = ctl.Start(ctx)
	cancel()
	return errors.Join(err, <-ended)
}

// newCache has what is followed: of namespaces and of our Secrets the metadata,
// of service accounts their references (metadata do not show those) and nothing
// else.
func (k *Keeper) newCache() (cache.Cache, error) {
	c, err := cache.New(k.Kube, cache.Options{
		Scheme:           clientscheme.Scheme,
		DefaultTransform: stripMetadata,
		ByObject: map[client.Object]cache.ByObject{
			metadata("Secret"):       {Label: labels.SelectorFromSet(labels.Set{Label: "true"}), Transform: stripMetadata},
			metadata("Namespace"):    {Transform: stripMetadata},
			&corev1.ServiceAccount{}: {Transform: stripAccount},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("a cache for pull secrets: %w", err)
	}
	return c, nil
}

func (k *Keeper) watch(ctl controller.Controller, seen cache.Cache, changed <-chan event.GenericEvent) error {
	ofNamespace := func(_ context.Context, o client.Object) []reconcile.Request { return request(o.GetNamespace()) }
	all := handler.Funcs{GenericFunc: func(ctx context.Context, _ event.GenericEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
		if err := seen.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return // of a cache: only while the operator stops
		}
		for i := range list.Items {
			q.Add(request(list.Items[i].Name)[0])
		}
	}}
	for _, s := range []source.Source{
		source.Kind[client.Object](seen, metadata("Namespace"), handler.EnqueueRequestsFromMapFunc(
			func(_ context.Context, o client.Object) []reconcile.Request { return request(o.GetName()) })),
		source.Kind[client.Object](seen, metadata("Secret"), handler.EnqueueRequestsFromMapFunc(ofNamespace)),
		source.Kind[client.Object](seen, &corev1.ServiceAccount{}, handler.EnqueueRequestsFromMapFunc(ofNamespace)),
		source.Channel(changed, all),
	} {
		if err := ctl.Watch(s); err != nil {
			return err
		}
	}
	return nil
}

func request(namespace string) []reconcile.Request {
	r := reconcile.Request{}
	r.Name = namespace
	return []reconcile.Request{r}
}

// stripMetadata drops what is not looked at.
func stripMetadata(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
		m.SetOwnerReferences(nil)
		m.SetAnnotations(only(m.GetAnnotations(), Origin))
		m.SetLabels(only(m.GetLabels(), Label))
	}
	return o, nil
}

// stripAccount drops all but the references and our own mark.
func stripAccount(o any) (any, error) {
	if sa, ok := o.(*corev1.ServiceAccount); ok {
		sa.ManagedFields, sa.OwnerReferences, sa.Labels, sa.Secrets = nil, nil, nil, nil
		sa.Annotations = only(sa.Annotations, Attached)
	}
	return o, nil
}

func only(m map[string]string, key string) map[string]string {
	if v, there := m[key]; there {
		return map[string]string{key: v}
	}
	return nil
}

package pullsecret

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/status"
)

const (
	// Label is on each Secret of ours, with the value "true": we list by it.
	Label = v1alpha1.Group + "/pull-secret"
	// Origin is the annotation of a Secret of ours: its own namespace/name. Tools
	// that copy Secrets copy labels and annotations too; a copy is not ours.
	Origin = v1alpha1.Group + "/pull-secret"
	// Attached is the annotation of a service account: the names of the references
	// that we added, with commas between them.
	Attached = v1alpha1.Group + "/pull-secrets"
	// ReasonForeign is of the event for a Secret that is in our way.
	ReasonForeign = "PullSecretNotOurs"
)

// again is when a Secret that is not ours is looked at anew: it is not watched.
const again = time.Minute

// Reconciler keeps one namespace as the list says.
type Reconciler struct {
	// Cache has namespaces and Secrets of ours (metadata only), and service
	// accounts; Client reads Secrets from the server, and writes.
	Cache  client.Reader
	Client client.Client
	// List returns the list; nil while there is none: nothing is done then.
	List    func() *Config
	Events  status.Recorder
	Metrics *Metrics

	mu sync.Mutex
	// known are the Secrets whose content was read or written at a version. Only
	// metadata is watched, and a digest of a password in an annotation would be one
	// to guess with.
	known map[types.NamespacedName]content
	told  map[types.NamespacedName]bool // events of foreign Secrets
}

// content of a Secret at a version.
type content struct {
	version string
	sum     [sha256.Size]byte
}

// visit is one look at a namespace.
type visit struct {
	*Reconciler
	list      *Config
	namespace string
	ours      map[string]*metav1.PartialObjectMetadata // Secrets by name
	counts    counts
}

// Reconcile implements reconcile.Reconciler. The request's name is a namespace's.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	v := visit{Reconciler: r, list: r.List(), namespace: req.Name}
	if v.list == nil {
		return reconcile.Result{}, nil
	}
	there, err := v.alive(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	if !there {
		r.forget(v.namespace)
		return reconcile.Result{}, nil
	}
	err = v.keep(ctx)
	switch {
	case err == nil:
		r.Metrics.namespace(v.namespace, v.counts)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return reconcile.Result{}, nil
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		// Somebody else was faster; the cache is about to know.
		return reconcile.Result{RequeueAfter: 200*time.Millisecond + rand.N(300*time.Millisecond)}, nil
	default:
		r.Metrics.failed(string(apierrors.ReasonForError(err)))
		return reconcile.Result{}, err
	}
	if v.counts.foreign > 0 {
		return reconcile.Result{RequeueAfter: again - again/10 + rand.N(again/5)}, nil
	}
	return reconcile.Result{}, nil
}

// alive says whether the namespace is there to stay.
func (v *visit) alive(ctx context.Context) (bool, error) {
	ns := metadata("Namespace")
	err := v.Cache.Get(ctx, types.NamespacedName{Name: v.namespace}, ns)
	if err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return ns.DeletionTimestamp.IsZero(), nil
}

// keep makes Secrets before the references to them, and removes them after.
func (v *visit) keep(ctx context.Context) error {
	secrets := &metav1.PartialObjectMetadataList{}
	secrets.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("SecretList"))
	if err := v.Cache.List(ctx, secrets, client.InNamespace(v.namespace)); err != nil {
		return fmt.Errorf("listing the pull secrets of namespace %s: %w", v.namespace, err)
	}
	v.ours = map[string]*metav1.PartialObjectMetadata{}
	for i := range secrets.Items {
		if s := &secrets.Items[i]; isOurs(s) {
			v.ours[s.Name] = s
		}
	}
	wanted := v.list.In(v.namespace)
	for _, name := range sorted(wanted) {
		usable, err := v.secret(ctx, wanted[name])
		if err != nil {
			return fmt.Errorf("keeping Secret %s/%s: %w", v.namespace, name, err)
		}
		if usable {
			v.counts.secrets++
			continue
		}
		v.counts.foreign++
		delete(wanted, name)
	}
	if err := v.accounts(ctx, wanted); err != nil {
		return err
	}
	for _, name := range sorted(v.ours) {
		if wanted[name] == nil && !v.list.Keeps(name) {
			if err := v.remove(ctx, v.ours[name]); err != nil {
				return fmt.Errorf("removing Secret %s/%s: %w", v.namespace, name, err)
			}
		}
	}
	return nil
}

// secret makes or corrects one; false means that it is somebody else's.
func (v *visit) secret(ctx context.Context, e *Entry) (bool, error) {
	key := types.NamespacedName{Namespace: v.namespace, Name: e.Name}
	data := e.DockerConfig()
	sum := sha256.Sum256(data)
	meta := v.ours[e.Name]
	if meta == nil {
		return v.create(ctx, key, data)
	}
	if !meta.DeletionTimestamp.IsZero() {
		return true, nil // its end is an event
	}
	k := v.content(key)
	if k.version != meta.ResourceVersion {
		return v.correct(ctx, key, data)
	}
	if k.sum == sum {
		return true, nil
	}
	// What is there is known: a new password is one request for each namespace.
	before := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, ResourceVersion: k.version}}
	return true, v.update(ctx, before, data)
}

// update writes the content over the version of before: it may be somebody
// else's by now.
func (v *visit) update(ctx context.Context, before *corev1.Secret, data []byte) error {
	s := before.DeepCopy()
	s.Data = map[string][]byte{corev1.DockerConfigJsonKey: data}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := v.Client.Patch(ctx, s, patch, client.FieldOwner(status.FieldOwner)); err != nil {
		return err
	}
	v.Metrics.wrote("secret-updated")
	v.note(client.ObjectKeyFromObject(s), s.ResourceVersion, data)
	return nil
}

func (v *visit) create(ctx context.Context, key types.NamespacedName, data []byte) (bool, error) {
	s := &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: data}}
	s.Namespace, s.Name = key.Namespace, key.Name
	s.Labels, s.Annotations = map[string]string{Label: "true"}, map[string]string{Origin: key.String()}
	// A foreign one is there again and again: a look costs the server less.
	if v.foreign(key) {
		if ours, err := v.correct(ctx, key, data); !apierrors.IsNotFound(err) {
			return ours, err
		}
	}
	err := v.Client.Create(ctx, s, client.FieldOwner(status.FieldOwner))
	if apierrors.IsAlreadyExists(err) {
		return v.correct(ctx, key, data)
	}
	if err != nil {
		return false, err
	}
	v.Metrics.wrote("secret-created")
	v.note(key, s.ResourceVersion, data)
	return true, nil
}

// correct reads a Secret, and writes it if it is ours and differs.
func (v *visit) correct(ctx context.Context, key types.NamespacedName, data []byte) (bool, error) {
	s := &corev1.Secret{}
	if err := v.Client.Get(ctx, key, s); err != nil {
		return false, err
	}
	if !isOurs(s) || s.Type != corev1.SecretTypeDockerConfigJson {
		v.report(ctx, s)
		return false, nil
	}
	if !bytes.Equal(s.Data[corev1.DockerConfigJsonKey], data) {
		return true, v.update(ctx, s, data)
	}
	v.note(key, s.ResourceVersion, data)
	return true, nil
}

// remove deletes a Secret of ours as the cache has it.
func (v *visit) remove(ctx context.Context, s *metav1.PartialObjectMetadata) error {
	if !s.DeletionTimestamp.IsZero() {
		return nil
	}
	err := v.Client.Delete(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name}},
		client.Preconditions{UID: &s.UID, ResourceVersion: &s.ResourceVersion})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		v.Metrics.wrote("secret-deleted")
		v.mu.Lock()
		delete(v.known, client.ObjectKeyFromObject(s))
		v.mu.Unlock()
	}
	return err
}

// report tells once of a Secret that is in our way.
func (v *visit) report(ctx context.Context, s *corev1.Secret) {
	key := client.ObjectKeyFromObject(s)
	v.mu.Lock()
	told := v.told[key]
	if v.told == nil {
		v.told = map[types.NamespacedName]bool{}
	}
	v.told[key] = true
	v.mu.Unlock()
	if told {
		return
	}
	const text = "This Secret has the name of a pull secret of Apparate and was not made by it: it is left alone. Delete or rename it, or give the entry of imagePullSecretsCrs another name."
	log.FromContext(ctx).Info("a Secret of the name of a pull secret is not ours and left alone: rename it or the entry", "secret", key.String())
	if v.Events != nil {
		v.Events.Event(s, corev1.EventTypeWarning, ReasonForeign, text)
	}
}

func (r *Reconciler) foreign(key types.NamespacedName) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.told[key]
}

func (r *Reconciler) content(key types.NamespacedName) content {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[key]
}

func (r *Reconciler) note(key types.NamespacedName, version string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = map[types.NamespacedName]content{}
	}
	r.known[key] = content{version, sha256.Sum256(data)}
	delete(r.told, key)
}

// forget drops all about a namespace that is gone.
func (r *Reconciler) forget(namespace string) {
	r.Metrics.namespace(namespace, counts{})
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.known {
		if key.Namespace == namespace {
			delete(r.known, key)
		}
	}
	for key := range r.told {
		if key.Namespace == namespace {
			delete(r.told, key)
		}
	}
}

func isOurs(o metav1.Object) bool {
	return o.GetLabels()[Label] == "true" && o.GetAnnotations()[Origin] == o.GetNamespace()+"/"+o.GetName()
}

func metadata(kind string) *metav1.PartialObjectMetadata {
	o := &metav1.PartialObjectMetadata{}
	o.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	return o
}

func sorted[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	slices.SortFunc(list, strings.Compare)
	return list
}

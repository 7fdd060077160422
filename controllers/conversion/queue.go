package conversion

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/watch"
)

// The indexes of ImageConversions in the cache.
const (
	// IndexTag finds the conversions of one tag; see tagKey.
	IndexTag = "tag"
	// IndexRule finds those of a rule, by "namespace/name".
	IndexRule = "rule"
	// IndexRepository finds those of a repository, by RepositoryKey.
	IndexRepository = "repository"
)

// RepositoryKey names a repository of a Registry in IndexRepository.
func RepositoryKey(registry client.ObjectKey, repository string) string {
	return registry.String() + "/" + repository
}

// Indexers are the functions behind the indexes.
func Indexers() map[string]client.IndexerFunc {
	index := func(f func(*v1alpha1.ImageConversion) string) client.IndexerFunc {
		return func(o client.Object) []string {
			if v := f(o.(*v1alpha1.ImageConversion)); v != "" {
				return []string{v}
			}
			return nil
		}
	}
	return map[string]client.IndexerFunc{
		IndexTag: index(tagKey),
		IndexRepository: index(func(c *v1alpha1.ImageConversion) string {
			return RepositoryKey(client.ObjectKey{Namespace: c.Namespace, Name: c.Spec.RegistryRef.Name}, c.Spec.Repository)
		}),
		IndexRule: index(func(c *v1alpha1.ImageConversion) string {
			if c.Spec.RuleRef == nil {
				return ""
			}
			return c.Namespace + "/" + c.Spec.RuleRef.Name
		}),
	}
}

// Queue creates conversions: objects of the API server, which is where pending
// work lives.
type Queue struct {
	// Client reads from a cache with Indexers and writes to the server.
	Client client.Client
	// MaxScanned is how many conversions may wait before those that a scan finds
	// are put off, MaxTotal before those of notifications are.
	MaxScanned, MaxTotal int
	// Backlog counts those that wait or run.
	Backlog *Backlog
}

// Wish is a conversion that is wanted.
type Wish struct {
	Registry *v1alpha1.Registry
	Spec     v1alpha1.ImageConversionSpec
	Rule     *v1alpha1.AccelerationRule
	Origin   watch.Origin
	// UpToDate tells whether the accelerated image was made from the digest of
	// the spec. It is only asked when a conversion of that digest ended before.
	UpToDate func(context.Context) (bool, error)
}

// Room returns watch.ErrBusy when no more conversions of this origin are taken.
func (q *Queue) Room(o watch.Origin) error {
	limit := q.MaxTotal
	if o == watch.Scan {
		limit = q.MaxScanned
	}
	if n := q.Backlog.Len(); n >= limit {
		return fmt.Errorf("%w (%d)", watch.ErrBusy, n)
	}
	return nil
}

// Add makes sure that there is a conversion for a wish, and returns its name.
// created is false where one was there.
func (q *Queue) Add(ctx context.Context, w Wish) (name string, created bool, err error) {
	if err := q.Room(w.Origin); err != nil {
		return "", false, err
	}
	c := w.object()
	err = q.Client.Create(ctx, c, client.FieldOwner("apparate-operator"))
	if err == nil {
		return c.Name, true, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return "", false, fmt.Errorf("creating ImageConversion %s: %w", c.Name, err)
	}
	var old v1alpha1.ImageConversion
	if err := q.Client.Get(ctx, client.ObjectKeyFromObject(c), &old); err != nil {
		// The cache does not have it yet: it was created a moment ago.
		return c.Name, false, client.IgnoreNotFound(err)
	}
	if again, err := q.again(ctx, w, &old); err != nil || !again {
		return c.Name, false, err
	}
	uid := old.UID
	if err := q.Client.Delete(ctx, &old, client.Preconditions{UID: &uid}); err != nil && !apierrors.IsNotFound(err) {
		return "", false, fmt.Errorf("replacing ImageConversion %s: %w", c.Name, err)
	}
	if err := q.Client.Create(ctx, c, client.FieldOwner("apparate-operator")); err != nil && !apierrors.IsAlreadyExists(err) {
		return "", false, fmt.Errorf("creating ImageConversion %s anew: %w", c.Name, err)
	}
	return c.Name, true, nil
}

// again says whether a conversion that is there has to be done once more.
func (q *Queue) again(ctx context.Context, w Wish, old *v1alpha1.ImageConversion) (bool, error) {
	switch {
	case !Finished(old):
		return false, nil
	case Failed(old):
		// Somebody pushed again, perhaps because of it. A scan that finds the same
		// digest has nothing new to say.
		return w.Origin == watch.Webhook, nil
	}
	// It succeeded, or was overtaken: by a push that may have been undone since.
	upToDate, err := w.UpToDate(ctx)
	return !upToDate, err
}

// object is the conversion to create.
func (w *Wish) object() *v1alpha1.ImageConversion {
	c := &v1alpha1.ImageConversion{
		ObjectMeta: metav1.ObjectMeta{
			Name: Name(&w.Spec), Namespace: w.Registry.Namespace,
			Labels:      map[string]string{},
			Annotations: map[string]string{v1alpha1.AnnotationOrigin: string(w.Origin)},
		},
		Spec: w.Spec,
	}
	label := func(key, value string) {
		if len(validation.IsValidLabelValue(value)) == 0 {
			c.Labels[key] = value
		}
	}
	label(v1alpha1.LabelRegistry, w.Registry.Name)
	if w.Rule != nil {
		label(v1alpha1.LabelRule, w.Rule.Name)
		// The history of a rule goes with it. Images do not.
		c.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.KindAccelerationRule,
			Name: w.Rule.Name, UID: w.Rule.UID,
		}}
	}
	return c
}

package conversion

import (
	"context"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/apparate/apparate/api/v1alpha1"
)

// Janitor removes conversions that ended, after a time or beyond a number,
// whichever comes first. It removes objects of Kubernetes, never images.
type Janitor struct {
	Client client.Client
	// MaxAge is how long a finished conversion is kept, MaxCount how many of each
	// namespace; 0 means without end.
	MaxAge   time.Duration
	MaxCount int
	// Interval is how often it looks.
	Interval time.Duration
	Now      func() time.Time
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (j *Janitor) NeedLeaderElection() bool { return true }

// Start cleans up until the context ends.
func (j *Janitor) Start(ctx context.Context) error {
	t := time.NewTicker(j.Interval)
	defer t.Stop()
	for {
		if err := j.Clean(ctx); err != nil && ctx.Err() == nil {
			log.FromContext(ctx).Error(err, "removing finished ImageConversions")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// pace is the time between two deletions: a history of ten thousand must not
// become a burst of requests.
const pace = 20 * time.Millisecond

// Clean removes what is to be removed now.
func (j *Janitor) Clean(ctx context.Context) error {
	var all v1alpha1.ImageConversionList
	if err := j.Client.List(ctx, &all, client.UnsafeDisableDeepCopy); err != nil { // of the cache
		return err
	}
	ended := map[string][]*v1alpha1.ImageConversion{}
	for i := range all.Items {
		if c := &all.Items[i]; Finished(c) && c.DeletionTimestamp.IsZero() {
			ended[c.Namespace] = append(ended[c.Namespace], c)
		}
	}
	for _, cs := range ended {
		slices.SortFunc(cs, func(a, b *v1alpha1.ImageConversion) int { return endOf(b).Compare(endOf(a)) })
		for i, c := range cs {
			old := j.MaxAge > 0 && j.Now().Sub(endOf(c)) > j.MaxAge
			if !old && (j.MaxCount == 0 || i < j.MaxCount) {
				continue
			}
			// Not one that was made anew under the same name, or is tried again.
			uid, version := c.UID, c.ResourceVersion
			err := j.Client.Delete(ctx, c.DeepCopy(), client.Preconditions{UID: &uid, ResourceVersion: &version})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pace):
			}
		}
	}
	return nil
}

// endOf is when a conversion ended.
func endOf(c *v1alpha1.ImageConversion) time.Time {
	if t := c.Status.CompletionTime; t != nil {
		return t.Time
	}
	return c.CreationTimestamp.Time
}

package profile

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/log"

	api "github.com/apparate/apparate/api/profile"
)

// When a profile is made, and how much is kept for that.
const (
	// maxSamples is how many samples of an image are kept: the newest, and of many from
	// one node fewer.
	maxSamples = 8
	// maxImages and maxBytes bound all that is kept; the images of which nothing was
	// heard for the longest time go first. What is lost with the process is no loss:
	// the registry has the profile.
	maxImages = 4096
	maxBytes  = 64 << 20
	// similar is how much of both profiles the old and the new one must share for the
	// old one to stay (Jaccard index of their chunks).
	similar = 0.9
	// Between two profiles of an image goes minPause, and in a day there are maxProfiles.
	minPause    = time.Minute
	maxProfiles = 4
	day         = 24 * time.Hour
	// An image that is none of ours is not asked for again for so long.
	keepUnwanted = time.Hour
	// Work that fails is done again, after firstRetry and then twice the time each,
	// maxTries times; then the next sample is a new beginning.
	firstRetry = 10 * time.Second
	maxTries   = 6
	// workTime bounds one piece of work: reading chunks of an image and pushing them.
	workTime = 10 * time.Minute
)

// Image is a platform's manifest in a repository.
type Image struct{ Host, Repository, Manifest string }

// Published is a profile in the registry.
type Published struct {
	// IDs are its chunks, ascending.
	IDs []uint64
	// Samples is of how many samples it was made.
	Samples int
	// Bytes is the size of its pack.
	Bytes int64
	// Text says what is in it, for people; "" when it was not made here.
	Text string
}

// errUnwanted is the reason why an image gets no profile; it will not pass soon.
var errUnwanted = errors.New("not wanted")

// Works is what a Keeper has done for it. Errors may pass, but for errUnwanted.
type Works interface {
	// Wanted says, without asking a registry, whether somebody wants profiles of an
	// image: a Registry with acceleration and a rule or a conversion is for it.
	Wanted(ctx context.Context, i Image) (bool, error)
	// Find returns the profile that the registry has of an accelerated image, nil for
	// none.
	Find(ctx context.Context, i Image) (*Published, error)
	// Publish makes a profile of samples, unless keep is content with the one that
	// there is; then it returns nil. keep is called with the chunks, ascending.
	Publish(ctx context.Context, i Image, samples []*api.Sample, keep func(ids []uint64) bool) (*Published, error)
	// Inherit lets the platforms of an image that have no profile take over those of
	// earlier images of the repository. It returns how many did.
	Inherit(ctx context.Context, h Heir) (int, error)
}

// Keeper keeps the newest samples of images, and sees to it that each has a profile
// that is made of them.
type Keeper struct {
	Works
	Metrics *Metrics
	Now     func() time.Time

	mu     sync.Mutex
	images map[Image]*record
	heirs  []Heir
	bytes  int64
	turn   uint64
	wake   chan struct{}
	once   sync.Once
}

// record is what is known of one image.
type record struct {
	image   Image
	samples []kept // the newest last
	heard   uint64 // the turn of its last sample
	dirty   bool   // there is something to do, at due
	due     time.Time
	tries   int  // that failed
	working bool // it must not go

	looked   bool       // the registry was asked
	last     *Published // what it has
	ours     bool       // we made it
	made     []time.Time
	unwanted time.Time // until when
}

// kept is a sample.
type kept struct {
	node   string
	id     [sha256.Size]byte
	size   int64
	sample *api.Sample
}

func (r *record) size() int64 {
	n := int64(1 << 10)
	for _, k := range r.samples {
		n += k.size
	}
	if r.last != nil {
		n += int64(8 * len(r.last.IDs))
	}
	return n
}

func (k *Keeper) init() {
	k.once.Do(func() { k.images, k.wake = map[Image]*record{}, make(chan struct{}, 1) })
}

// Take keeps a sample; it is a Receiver's Take.
func (k *Keeper) Take(ctx context.Context, node string, s *api.Sample, size int64) (Verdict, error) {
	k.init()
	i, err := imageOf(s)
	if err != nil {
		return Malformed, err
	}
	id, err := idOf(node, s)
	if err != nil {
		return Malformed, err
	}
	switch ok, err := k.Wanted(ctx, i); {
	case err != nil:
		return Failed, err
	case !ok:
		return Foreign, fmt.Errorf("no Registry with acceleration on and a rule is for %s/%s", i.Host, i.Repository)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.Now()
	r := k.images[i]
	if r == nil {
		r = &record{image: i}
		k.images[i] = r
		k.bytes += r.size()
	}
	k.turn++
	r.heard = k.turn
	switch {
	case now.Before(r.unwanted):
		return NotAccelerated, nil
	case slices.ContainsFunc(r.samples, func(o kept) bool { return o.id == id }):
		return Known, nil
	}
	k.change(r, func() { r.add(kept{node, id, size, s}) })
	if !r.dirty || r.tries == 0 {
		r.dirty, r.tries, r.due = true, 0, now
		if n := len(r.made); n > 0 && now.Before(r.made[n-1].Add(minPause)) {
			r.due = r.made[n-1].Add(minPause)
		}
	}
	k.evict(r)
	k.wakeUp()
	return Taken, nil
}

// wakeUp makes Run look for work.
func (k *Keeper) wakeUp() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// add keeps a sample. Where there are too many, the oldest goes of the node that has the
// most: one node alone does not make the profile of an image.
func (r *record) add(n kept) {
	r.samples = append(r.samples, n)
	if len(r.samples) <= maxSamples {
		return
	}
	of := map[string]int{}
	for _, s := range r.samples {
		of[s.node]++
	}
	gone := 0
	for i, s := range r.samples {
		if of[s.node] > of[r.samples[gone].node] {
			gone = i
		}
	}
	r.samples = slices.Delete(r.samples, gone, gone+1)
}

// change keeps count of the bytes while a record changes. The caller holds the lock.
func (k *Keeper) change(r *record, f func()) {
	k.bytes -= r.size()
	f()
	k.bytes += r.size()
}

// evict makes room, but of what belongs to r. The caller holds the lock.
func (k *Keeper) evict(r *record) {
	for len(k.images) > maxImages || k.bytes > maxBytes {
		var oldest *record
		for _, o := range k.images {
			if o != r && !o.working && (oldest == nil || o.heard < oldest.heard) {
				oldest = o
			}
		}
		if oldest == nil {
			return // of one image, and of what is being worked on, there is never so much
		}
		delete(k.images, oldest.image)
		k.bytes -= oldest.size()
	}
}

// Held says of how many images samples are kept, and how many bytes that takes.
func (k *Keeper) Held() (images int, bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.images), k.bytes
}

// Run makes profiles, one at a time, until the context ends.
func (k *Keeper) Run(ctx context.Context) error {
	k.init()
	for {
		r, wait := k.next()
		if r != nil {
			k.work(ctx, r)
		}
		h, ok := k.heir()
		if ok {
			k.inherit(ctx, h)
		}
		if r == nil && !ok {
			select {
			case <-k.wake:
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// next takes the image whose turn it is; nil when none is due for a while.
func (k *Keeper) next() (*record, time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var first *record
	for _, r := range k.images {
		if r.dirty && (first == nil || r.due.Before(first.due)) {
			first = r
		}
	}
	if first == nil {
		return nil, time.Minute
	}
	if wait := first.due.Sub(k.Now()); wait > 0 {
		return nil, min(wait, time.Minute)
	}
	first.dirty, first.working = false, true
	return first, 0
}

// work does what is to be done for one image, and notes how it ended.
func (k *Keeper) work(ctx context.Context, r *record) {
	began := k.Now()
	one, cancel := context.WithTimeout(ctx, workTime)
	p, found, looked, err := k.try(one, r)
	cancel()
	now := k.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.evict(nil)
	r.working = false
	if looked {
		r.looked = true
	}
	k.change(r, func() {
		if found != nil && r.last == nil {
			r.last = found
		}
		switch {
		case errors.Is(err, errUnwanted):
			r.samples, r.dirty, r.unwanted = nil, false, now.Add(keepUnwanted)
		case err == nil && p != nil:
			r.last, r.ours, r.made = p, true, append(r.made, now)
		}
	})
	switch {
	case err == nil:
		r.tries = 0
		k.Metrics.made(p, now.Sub(began))
	case errors.Is(err, errUnwanted):
		log.FromContext(ctx).V(1).Info("no profile is made", "image", r.image, "because", err.Error())
	case ctx.Err() != nil: // the operator ends
	default:
		k.Metrics.failed()
		r.tries++
		log.FromContext(ctx).Error(err, "making a profile", "host", r.image.Host, "repository", r.image.Repository, "manifest", r.image.Manifest, "tries", r.tries)
		if r.dirty = r.tries < maxTries; r.dirty {
			r.due = now.Add(firstRetry << (r.tries - 1))
		} else {
			r.tries = 0
		}
	}
}

// try makes the profile of an image where it should have another one. found is what the
// registry had, where that was asked.
func (k *Keeper) try(ctx context.Context, r *record) (p, found *Published, looked bool, err error) {
	k.mu.Lock()
	looked, last, ours := r.looked, r.last, r.ours
	samples := make([]*api.Sample, 0, len(r.samples))
	for _, s := range r.samples {
		samples = append(samples, s.sample)
	}
	r.made = slices.DeleteFunc(r.made, func(at time.Time) bool { return k.Now().Sub(at) > day })
	enough := len(r.made) >= maxProfiles
	k.mu.Unlock()
	if !looked {
		if found, err = k.Find(ctx, r.image); err != nil {
			return nil, nil, false, err
		}
		last = found
	}
	switch {
	case len(samples) == 0, enough:
		return nil, found, true, nil
	case last != nil && !ours && len(samples) < min(last.Samples, maxSamples):
		// Somebody knew more than we do: it stays until we know as much.
		return nil, found, true, nil
	}
	p, err = k.Publish(ctx, r.image, samples, func(ids []uint64) bool {
		return last != nil && jaccard(last.IDs, ids) >= similar
	})
	return p, found, true, err
}

// jaccard is how much two ascending lists have in common: from 0 to 1.
func jaccard(a, b []uint64) float64 {
	both, i, j := 0, 0, 0
	for i < len(a) && j < len(b) {
		switch {
		case a[i] < b[j]:
			i++
		case a[i] > b[j]:
			j++
		default:
			both, i, j = both+1, i+1, j+1
		}
	}
	all := len(a) + len(b) - both
	if all == 0 {
		return 1
	}
	return float64(both) / float64(all)
}

// idOf tells a sample from others.
func idOf(node string, s *api.Sample) (id [sha256.Size]byte, err error) {
	h := sha256.New()
	_, err = h.Write([]byte(node + "\n"))
	err = errors.Join(err, json.NewEncoder(h).Encode(s))
	return [sha256.Size]byte(h.Sum(nil)), err
}

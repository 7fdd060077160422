// Package podsecrets gives the snapshotter the pull secrets of the pods on its node,
// those that a pod names and those of its service account, as kubelet does for the
// pull itself: a lazy image is read long after its pull.
package podsecrets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apparate/apparate/snapshotter/kubeapi"
	"github.com/apparate/apparate/snapshotter/service"
	"github.com/apparate/apparate/snapshotter/source"
)

// File is what a Keeper writes, in the directory of credentials.
const File = "pods.json"

const (
	// settle is how long changes are collected before something is done.
	settle = 100 * time.Millisecond
	// minAge is how old what was read must be to be read again because a pod changed.
	minAge = 5 * time.Second
	// patience is how long the first file waits for what the server does not tell:
	// the one there may be of our predecessor.
	patience = 30 * time.Second
	// again is how long it takes to try once more what failed here.
	again = 10 * time.Second
)

// Keeper keeps the file. It needs the right to get, list and watch pods, and to get
// service accounts and secrets.
type Keeper struct {
	API *kubeapi.Client
	// Node is the name of this node.
	Node string
	// Dir is the directory of credentials; it is made if need be.
	Dir string
	// Refresh is how long a secret is taken for unchanged while its pods are [a minute].
	Refresh time.Duration
	// Logger gets each secret that cannot be used, once [slog.Default()].
	Logger *slog.Logger
	// Report, if set, is told why the file is not up to date, and with nil that it is
	// again, each time that changes. It must be quick.
	Report func(error)
}

// Run keeps the file until ctx ends, and leaves it then: the snapshotter needs it
// while the pods run.
func (k *Keeper) Run(ctx context.Context) error {
	if k.API == nil || k.Node == "" || k.Dir == "" {
		return errors.New("credentials of pods: API, Node and Dir have to be set")
	}
	w := newWork(*k)
	var following sync.WaitGroup
	following.Go(func() { w.follow(ctx) })
	defer following.Wait()
	w.loop(ctx)
	return context.Cause(ctx)
}

// Remove removes what a Keeper wrote into dir.
func Remove(dir string) error {
	err := os.Remove(filepath.Join(dir, File))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// work is the state of one Run.
type work struct {
	Keeper
	cache *cache

	mu      sync.Mutex
	pods    map[string]*pod // by namespace/name
	listed  time.Time       // first; zero before
	trouble map[string]string
	told    string        // of trouble
	changed chan struct{} // has one when something changed

	written bool // only of loop
}

func newWork(k Keeper) *work {
	if k.Logger == nil {
		k.Logger = slog.Default()
	}
	if k.Refresh <= 0 {
		k.Refresh = time.Minute
	}
	return &work{
		Keeper: k, cache: newCache(k.API, k.Refresh, k.Logger), pods: map[string]*pod{},
		trouble: map[string]string{}, changed: make(chan struct{}, 1),
	}
}

// touch makes loop look.
func (w *work) touch() {
	select {
	case w.changed <- struct{}{}:
	default: // it will
	}
}

// tell notes what is wrong with one part of the work, or that it is right again.
func (w *work) tell(part string, err error) {
	w.mu.Lock()
	delete(w.trouble, part)
	if err != nil {
		w.trouble[part] = err.Error()
	}
	var all []string
	for _, part := range slices.Sorted(maps.Keys(w.trouble)) {
		all = append(all, w.trouble[part])
	}
	now := strings.Join(all, "; ")
	same := now == w.told
	w.told = now
	w.mu.Unlock()
	if same {
		return
	}
	err = nil
	if now == "" {
		w.Logger.Info("credentials of pods are up to date again")
	} else {
		err = errors.New(now)
		w.Logger.Warn("credentials of pods are not up to date", "error", err)
	}
	if w.Report != nil {
		w.Report(err)
	}
}

// loop makes the file anew when pods change and when a secret may have.
func (w *work) loop(ctx context.Context) {
	due := time.Now().Add(time.Hour) // until there is a list
	for {
		timer := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-w.changed:
			timer.Stop()
			if soon := time.Now().Add(settle); soon.Before(due) {
				due = soon
			}
		case <-timer.C:
			due = time.Now().Add(w.pass(ctx))
		}
	}
}

// pass reads what is due, writes the file, and returns when to do so again.
func (w *work) pass(ctx context.Context) time.Duration {
	w.mu.Lock()
	pods := make([]*pod, 0, len(w.pods))
	for _, p := range w.pods {
		pods = append(pods, p)
	}
	listed := w.listed
	w.mu.Unlock()
	if listed.IsZero() {
		return time.Hour
	}
	next, unknown, err := w.cache.refresh(ctx, pods)
	if ctx.Err() != nil {
		return next
	}
	w.tell("secrets", err)
	if !w.written && unknown > 0 && time.Since(listed) < patience {
		return min(next, again)
	}
	auths, left := gather(pods, w.cache.auths)
	err = nil
	if left > 0 {
		err = fmt.Errorf("the pull secrets of the pods here are larger than %d bytes together: %d are left out", maxFile, left)
	}
	w.tell("size", err)
	if err = w.write(auths); err != nil {
		next = min(next, again)
	} else {
		w.written = true
	}
	w.tell("file", err)
	return next
}

// write makes the file, for root alone, at once or not at all; without credentials
// there is none.
func (w *work) write(auths []source.Auth) error {
	if len(auths) == 0 {
		return Remove(w.Dir)
	}
	text, err := source.MarshalAuths(auths)
	if err != nil {
		return err
	}
	path := filepath.Join(w.Dir, File)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := os.MkdirAll(w.Dir, 0o700); err != nil {
		return err
	}
	return service.WriteFile(path, text, 0o600)
}

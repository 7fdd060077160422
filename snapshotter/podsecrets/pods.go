package podsecrets

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"reflect"
	"slices"
	"time"

	"github.com/distribution/reference"

	"github.com/apparate/apparate/snapshotter/kubeapi"
)

// pod is what matters of one. It does not change; changes make another.
type pod struct {
	namespace, name string
	account         string   // "" for none: of a static pod
	secrets         []string // of its own
	images          []image
	touched         time.Time
}

// image is a repository that a pod uses.
type image struct{ host, repo string }

func (p *pod) key() string { return p.namespace + "/" + p.name }

type container struct {
	Image string `json:"image"`
}

// podObject is as much of the API's Pod as is read.
type podObject struct {
	Metadata struct {
		Namespace       string `json:"namespace"`
		Name            string `json:"name"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Spec struct {
		ServiceAccountName  string      `json:"serviceAccountName"`
		ImagePullSecrets    []localName `json:"imagePullSecrets"`
		Containers          []container `json:"containers"`
		InitContainers      []container `json:"initContainers"`
		EphemeralContainers []container `json:"ephemeralContainers"`
		Volumes             []struct {
			Image *struct {
				Reference string `json:"reference"`
			} `json:"image"`
		} `json:"volumes"`
	} `json:"spec"`
	Status struct {
		Phase string `json:"phase"`
	} `json:"status"`
}

// localName is a LocalObjectReference.
type localName struct {
	Name string `json:"name"`
}

func names(refs []localName) []string {
	var list []string
	for _, r := range refs {
		if r.Name != "" {
			list = append(list, r.Name)
		}
	}
	return list
}

// over says whether no container of the pod will read any more.
func (o *podObject) over() bool {
	return o.Status.Phase == "Succeeded" || o.Status.Phase == "Failed"
}

func (o *podObject) pod() *pod {
	p := &pod{
		namespace: o.Metadata.Namespace, name: o.Metadata.Name, account: o.Spec.ServiceAccountName,
		secrets: names(o.Spec.ImagePullSecrets), touched: time.Now(),
	}
	add := func(ref string) {
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil {
			return // kubelet tells
		}
		if i := (image{reference.Domain(named), reference.Path(named)}); !slices.Contains(p.images, i) {
			p.images = append(p.images, i)
		}
	}
	for _, c := range slices.Concat(o.Spec.InitContainers, o.Spec.Containers, o.Spec.EphemeralContainers) {
		add(c.Image)
	}
	for _, v := range o.Spec.Volumes {
		if v.Image != nil {
			add(v.Image.Reference)
		}
	}
	return p
}

// follow keeps the pods of this node up to date.
func (w *work) follow(ctx context.Context) {
	const first, last = time.Second, time.Minute
	for wait := first; ; {
		version, err := w.list(ctx)
		for err == nil {
			w.tell("pods", nil)
			began := time.Now()
			version, err = w.watch(ctx, version)
			if err == nil || time.Since(began) > last {
				wait = first
			}
		}
		if ctx.Err() != nil {
			return
		}
		if !kubeapi.IsGone(err) {
			w.tell("pods", fmt.Errorf("the pods of node %s cannot be followed: %w", w.Node, err))
		}
		select {
		case <-ctx.Done():
			return
		// Not all nodes at once, when the server is back.
		case <-time.After(wait + rand.N(wait)):
		}
		wait = min(2*wait, last)
	}
}

func (w *work) path() string {
	return "/api/v1/pods?fieldSelector=" + url.QueryEscape("spec.nodeName="+w.Node)
}

// list reads all pods of the node. What the server has in memory is new enough, as
// changes follow, and costs little with thousands of nodes.
func (w *work) list(ctx context.Context) (version string, err error) {
	pods := map[string]*pod{}
	version, err = w.API.List(ctx, w.path()+"&resourceVersion=0", func(raw json.RawMessage) error {
		var o podObject
		if err := json.Unmarshal(raw, &o); err != nil {
			return fmt.Errorf("a pod cannot be read: %w", err)
		}
		if !o.over() {
			p := o.pod()
			pods[p.key()] = p
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	for key, old := range w.pods {
		if now := pods[key]; now != nil && old.same(now) {
			pods[key] = old
		}
	}
	w.pods = pods
	if w.listed.IsZero() {
		w.listed = time.Now()
	}
	w.mu.Unlock()
	w.touch()
	return version, nil
}

// same says whether nothing that matters has changed.
func (p *pod) same(now *pod) bool {
	a, b := *p, *now
	a.touched, b.touched = time.Time{}, time.Time{}
	return reflect.DeepEqual(a, b)
}

// watch follows changes after version, and returns the version up to which it came.
func (w *work) watch(ctx context.Context, version string) (string, error) {
	err := w.API.Watch(ctx, w.path(), version, func(kind string, raw json.RawMessage) error {
		var o podObject
		if err := json.Unmarshal(raw, &o); err != nil {
			return fmt.Errorf("a pod cannot be read: %w", err)
		}
		version = o.Metadata.ResourceVersion
		if kind == "BOOKMARK" {
			return nil
		}
		p := o.pod()
		w.mu.Lock()
		if kind == "DELETED" || o.over() {
			delete(w.pods, p.key())
		} else {
			w.pods[p.key()] = p
		}
		w.mu.Unlock()
		w.touch()
		return nil
	})
	return version, err
}

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/apparate/apparate/snapshotter/kubeapi"
)

// How the operator marks the pull secrets that it keeps: a label; an annotation of the
// same name with the namespace/name with which it was made; and the annotation of a
// service account, with the names that were attached.
const (
	PullSecretLabel    = "apparate.cloud.tencent.com/pull-secret"
	PullSecretOrigin   = "apparate.cloud.tencent.com/pull-secret"
	PullSecretAttached = "apparate.cloud.tencent.com/pull-secrets"
)

// Removal is the end of an installation. After it, whoever deletes the rest takes no
// rights away that are still needed.
type Removal struct {
	API *kubeapi.Client
	// Namespace has the DaemonSet, and the Deployment Operator, which may be empty.
	Namespace, DaemonSet, Operator string
	// Progress gets a line for each thing that is done.
	Progress io.Writer
}

// Run deletes the DaemonSet, waits until its pods have left their nodes, and removes
// what they wrote to Node objects. It deletes the operator as well, and then the pull
// secrets that it kept, where we may see them.
func (r Removal) Run(ctx context.Context) error {
	if err := r.end(ctx, "daemonsets", r.DaemonSet); err != nil {
		return err
	}
	if err := r.nodes(ctx); err != nil {
		return err
	}
	if r.Operator == "" {
		return nil
	}
	// Or it would make the secrets anew.
	if err := r.end(ctx, "deployments", r.Operator); err != nil {
		return err
	}
	return r.pullSecrets(ctx)
}

func (r Removal) say(format string, args ...any) error {
	_, err := fmt.Fprintf(r.Progress, format+"\n", args...)
	return err
}

// end deletes an object of apps/v1 and waits until it and its pods are gone.
func (r Removal) end(ctx context.Context, kind, name string) error {
	const poll = 500 * time.Millisecond
	path := "/apis/apps/v1/namespaces/" + r.Namespace + "/" + kind + "/" + name
	err := r.API.Delete(ctx, path, map[string]any{"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}, nil)
	for err == nil {
		if err = r.API.Get(ctx, path, nil); err == nil {
			select {
			case <-ctx.Done():
				return fmt.Errorf("the pods of %s %s/%s do not end: %w", kind, r.Namespace, name, ctx.Err())
			case <-time.After(poll):
			}
		}
	}
	if !kubeapi.IsNotFound(err) {
		return err
	}
	return r.say("%s %s/%s is gone", kind, r.Namespace, name)
}

// nodes removes what agents wrote.
func (r Removal) nodes(ctx context.Context) error {
	var names []string
	_, err := r.API.List(ctx, "/api/v1/nodes", func(raw json.RawMessage) error {
		var n node
		if err := json.Unmarshal(raw, &n); err != nil {
			return err
		}
		if n.Metadata.Annotations[Annotation] != "" || n.condition(Condition) != nil {
			names = append(names, n.Metadata.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := clearNode(ctx, r.API, name); err != nil && !kubeapi.IsNotFound(err) {
			return err
		}
		if err := r.say("node %s: annotation and condition removed", name); err != nil {
			return err
		}
	}
	return nil
}

// object is what we need of a Secret or a ServiceAccount.
type object struct {
	Metadata struct {
		Namespace       string            `json:"namespace"`
		Name            string            `json:"name"`
		ResourceVersion string            `json:"resourceVersion"`
		Annotations     map[string]string `json:"annotations"`
	} `json:"metadata"`
	ImagePullSecrets []struct {
		Name string `json:"name"`
	} `json:"imagePullSecrets"`
}

// pullSecrets detaches and deletes what the operator kept. A Secret that somebody
// copied with its labels is theirs.
func (r Removal) pullSecrets(ctx context.Context) error {
	var accounts, secrets []object
	collect := func(into *[]object, path string, ours func(o object) bool) error {
		_, err := r.API.List(ctx, path, func(raw json.RawMessage) error {
			var o object
			err := json.Unmarshal(raw, &o)
			if err == nil && ours(o) {
				*into = append(*into, o)
			}
			return err
		})
		return err
	}
	err := collect(&accounts, "/api/v1/serviceaccounts", func(o object) bool { return o.Metadata.Annotations[PullSecretAttached] != "" })
	if kubeapi.IsForbidden(err) {
		return nil // no pull secrets were asked for
	}
	if err != nil {
		return err
	}
	err = collect(&secrets, "/api/v1/secrets?labelSelector="+url.QueryEscape(PullSecretLabel+"=true"), func(o object) bool {
		return o.Metadata.Annotations[PullSecretOrigin] == o.Metadata.Namespace+"/"+o.Metadata.Name
	})
	if err != nil {
		return err
	}
	for _, o := range accounts {
		if err := r.detach(ctx, o); err != nil {
			return err
		}
	}
	for _, o := range secrets {
		err := r.API.Delete(ctx, "/api/v1/namespaces/"+o.Metadata.Namespace+"/secrets/"+o.Metadata.Name, nil, nil)
		if err != nil && !kubeapi.IsNotFound(err) {
			return err
		}
	}
	return r.say("%d pull secrets removed, from %d service accounts", len(secrets), len(accounts))
}

// detach takes our references out of a service account.
func (r Removal) detach(ctx context.Context, o object) error {
	const tries = 5
	path := "/api/v1/namespaces/" + o.Metadata.Namespace + "/serviceaccounts/" + o.Metadata.Name
	for try := 1; ; try++ {
		ours := strings.FieldsFunc(o.Metadata.Annotations[PullSecretAttached], func(c rune) bool { return c == ',' || c == ' ' })
		rest := []map[string]string{}
		for _, s := range o.ImagePullSecrets {
			if !slices.Contains(ours, s.Name) {
				rest = append(rest, map[string]string{"name": s.Name})
			}
		}
		// The list is one value: see the operator, which does the same.
		err := r.API.Patch(ctx, path, kubeapi.MergePatch, map[string]any{
			"metadata": map[string]any{
				"resourceVersion": o.Metadata.ResourceVersion, "annotations": map[string]any{PullSecretAttached: nil},
			},
			"imagePullSecrets": rest,
		}, nil)
		if err == nil || kubeapi.IsNotFound(err) {
			return nil
		}
		if !kubeapi.IsConflict(err) || try == tries {
			return err
		}
		o = object{}
		if err := r.API.Get(ctx, path, &o); err != nil {
			return err
		}
	}
}

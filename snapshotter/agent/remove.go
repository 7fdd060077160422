package agent

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/apparate/apparate/snapshotter/kubeapi"
)

// RemoveAll deletes the DaemonSet namespace/name, waits until its pods have left their
// nodes, and removes what they wrote to Node objects. It is for the end of an
// installation: after it, whoever deletes the rest takes no rights away that are still
// needed.
func RemoveAll(ctx context.Context, api *kubeapi.Client, progress io.Writer, namespace, name string) error {
	const poll = 500 * time.Millisecond
	path := "/apis/apps/v1/namespaces/" + namespace + "/daemonsets/" + name
	err := api.Delete(ctx, path, map[string]any{"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}, nil)
	if err != nil && !kubeapi.IsNotFound(err) {
		return err
	}
	for err == nil {
		if err = api.Get(ctx, path, nil); err == nil {
			select {
			case <-ctx.Done():
				return fmt.Errorf("the pods of DaemonSet %s/%s do not end: %w", namespace, name, ctx.Err())
			case <-time.After(poll):
			}
		}
	}
	if !kubeapi.IsNotFound(err) {
		return err
	}
	var nodes struct {
		Items []node `json:"items"`
	}
	if err := api.Get(ctx, "/api/v1/nodes", &nodes); err != nil {
		return err
	}
	for _, n := range nodes.Items {
		if n.Metadata.Annotations[Annotation] == "" && n.condition(Condition) == nil {
			continue
		}
		if err := clearNode(ctx, api, n.Metadata.Name); err != nil && !kubeapi.IsNotFound(err) {
			return err
		}
		if _, err := fmt.Fprintf(progress, "node %s: annotation and condition removed\n", n.Metadata.Name); err != nil {
			return err
		}
	}
	return nil
}

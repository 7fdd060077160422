package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/apparate/apparate/snapshotter/host"
	"github.com/apparate/apparate/snapshotter/kubeapi"
)

// node is what we need of a Node (core/v1).
type node struct {
	Metadata struct {
		Name            string            `json:"name"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
		Labels          map[string]string `json:"labels"`
		Annotations     map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		Taints []json.RawMessage `json:"taints"`
	} `json:"spec"`
	Status struct {
		Conditions []condition `json:"conditions"`
		NodeInfo   struct {
			KubeletVersion string `json:"kubeletVersion"`
		} `json:"nodeInfo"`
	} `json:"status"`
}

type condition struct {
	Type               string    `json:"type"`
	Status             string    `json:"status"`
	Reason             string    `json:"reason"`
	Message            string    `json:"message"`
	LastHeartbeatTime  time.Time `json:"lastHeartbeatTime"`
	LastTransitionTime time.Time `json:"lastTransitionTime"`
}

func (n *node) condition(kind string) *condition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == kind {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// NodeReady says why the node is not ready; nil when it is. For host.Options.Healthy.
func (a *Agent) NodeReady(ctx context.Context) error {
	var n node
	if err := a.API.Get(ctx, "/api/v1/nodes/"+a.Node, &n); err != nil {
		return err
	}
	c := n.condition("Ready")
	switch {
	case c == nil:
		return fmt.Errorf("%w: it has no condition Ready", host.ErrNotReady)
	case c.Status != "True":
		return fmt.Errorf("%w: %s: %s", host.ErrNotReady, c.Reason, c.Message)
	}
	return nil
}

// KubeletVersion is that of the node, such as v1.30.4+k3s1; "" when the API server does
// not say.
func (a *Agent) KubeletVersion(ctx context.Context) string {
	var n node
	if err := a.API.Get(ctx, "/api/v1/nodes/"+a.Node, &n); err != nil {
		a.Logger.Warn("kubelet's version is not known", "error", err)
	}
	return n.Status.NodeInfo.KubeletVersion
}

// report tells the cluster how the machine is, where that changed.
func (a *Agent) report(ctx context.Context) {
	now := a.machine.Status()
	a.mu.Lock()
	before, reported := a.told, a.reported
	a.mu.Unlock()
	if !reported || now != before {
		if err := a.writeNode(ctx, now); err != nil {
			if ctx.Err() == nil {
				a.Logger.Warn("the node does not say how it is", "error", err)
			}
			return
		}
		a.event(ctx, before, now)
		a.mu.Lock()
		a.told, a.reported = now, true
		a.mu.Unlock()
	}
	if a.tainted && now.State != host.Installing {
		if err := a.liftTaint(ctx); err != nil {
			a.Logger.Warn("the startup taint is not lifted", "error", err)
			return
		}
		a.tainted = false
	}
}

// writeNode writes annotation and condition.
func (a *Agent) writeNode(ctx context.Context, s host.Status) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := "/api/v1/nodes/" + a.Node
	var n node
	patch := map[string]any{"metadata": map[string]any{"annotations": map[string]any{Annotation: string(text)}}}
	if err := a.API.Patch(ctx, path, kubeapi.MergePatch, patch, &n); err != nil {
		return err
	}
	now := time.Now().UTC().Truncate(time.Second)
	c := condition{Type: Condition, Status: "False", Reason: s.Reason, Message: s.Message, LastHeartbeatTime: now, LastTransitionTime: now}
	switch {
	case s.State == host.Ready:
		c.Status, c.Reason, c.Message = "True", "Ready", "images are mounted lazily by "+s.DataPath
		if s.Trouble != "" {
			c.Message += "; trouble with a registry: " + s.Trouble
		}
	case c.Reason == "":
		c.Reason = string(s.State)
	}
	if old := n.condition(Condition); old != nil && old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	return a.API.Patch(ctx, path+"/status", kubeapi.StrategicMergePatch,
		map[string]any{"status": map[string]any{"conditions": []condition{c}}}, nil)
}

// clearNode removes what agents wrote to a node.
func clearNode(ctx context.Context, api *kubeapi.Client, name string) error {
	path := "/api/v1/nodes/" + name
	var n node
	err := api.Patch(ctx, path, kubeapi.MergePatch, map[string]any{"metadata": map[string]any{"annotations": map[string]any{Annotation: nil}}}, &n)
	if err != nil || n.condition(Condition) == nil {
		return err
	}
	return api.Patch(ctx, path+"/status", kubeapi.StrategicMergePatch, map[string]any{"status": map[string]any{
		"conditions": []map[string]any{{"type": Condition, "$patch": "delete"}},
	}}, nil)
}

// liftTaint takes our taint off the node.
func (a *Agent) liftTaint(ctx context.Context) error {
	const tries = 5
	path := "/api/v1/nodes/" + a.Node
	var err error
	for range tries {
		var n node
		if err = a.API.Get(ctx, path, &n); err != nil {
			return err
		}
		rest := []json.RawMessage{}
		for _, t := range n.Spec.Taints {
			var key struct {
				Key string `json:"key"`
			}
			if err := json.Unmarshal(t, &key); err != nil {
				return err
			}
			if key.Key != Taint {
				rest = append(rest, t)
			}
		}
		if len(rest) == len(n.Spec.Taints) {
			return nil
		}
		// The list is one value: who changes it at the same time must not lose a taint.
		err = a.API.Patch(ctx, path, kubeapi.MergePatch, map[string]any{
			"metadata": map[string]any{"resourceVersion": n.Metadata.ResourceVersion}, "spec": map[string]any{"taints": rest},
		}, nil)
		if !kubeapi.IsConflict(err) {
			break
		}
	}
	if err == nil {
		a.Logger.Info("the startup taint is lifted")
	}
	return err
}

// event tells people what has changed.
func (a *Agent) event(ctx context.Context, before, now host.Status) {
	const repeat = 10 * time.Minute
	kind, reason, message := "Normal", "ApparateReady", "images are mounted lazily by "+now.DataPath
	switch {
	case now.State == host.Installing:
		return
	case now.State != host.Ready:
		kind, reason, message = "Warning", "Apparate"+now.Reason, now.Message
		if now.Reason == "" {
			kind, reason = "Normal", "Apparate"+string(now.State)
		}
	case now.Trouble != "" && now.Trouble != before.Trouble:
		kind, reason, message = "Warning", "ApparateRegistryTrouble", now.Trouble
	case before.State == host.Ready:
		return
	}
	a.mu.Lock()
	last, again := a.events[reason+message]
	again = again && time.Since(last) < repeat
	if !again {
		if len(a.events) > 100 {
			clear(a.events)
		}
		a.events[reason+message] = time.Now()
	}
	a.mu.Unlock()
	if again {
		return
	}
	t := time.Now().UTC()
	stamp := t.Format(time.RFC3339)
	err := a.API.Create(ctx, "/api/v1/namespaces/default/events", map[string]any{
		"apiVersion": "v1", "kind": "Event", "type": kind, "reason": reason, "message": message,
		"metadata": map[string]any{"name": fmt.Sprintf("%s.%x", a.Node, t.UnixNano()), "namespace": "default"},
		// As kubelet names its node, so that `kubectl describe node` shows it.
		"involvedObject": map[string]any{"kind": "Node", "name": a.Node, "uid": a.Node},
		"source":         map[string]any{"component": "apparate", "host": a.Node},
		"firstTimestamp": stamp, "lastTimestamp": stamp, "count": 1,
		"reportingComponent": "apparate", "reportingInstance": a.Node,
	}, nil)
	if err != nil && !errors.Is(err, context.Canceled) {
		a.Logger.Warn("an event is lost", "reason", reason, "message", message, "error", err)
	}
}

package conversion

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/fault"
)

// JobOptions say how Jobs look that run conversions.
type JobOptions struct {
	// Image is the operator's own image: the Job runs the same program.
	Image string
	// Command is how the program is started in it.
	Command []string
	// Template is what the pods are made from: resources, node selector,
	// tolerations, pull secrets. Its first container, if any, becomes ours.
	Template corev1.PodTemplateSpec
	// Keep is how long a finished Job stays that nobody took the result of.
	Keep time.Duration
	// Poll is how often a Job is looked at.
	Poll time.Duration
}

// DefaultJobOptions are those without flags.
func DefaultJobOptions() JobOptions {
	return JobOptions{Command: []string{"/apparate-operator", "run-conversion"}, Keep: 10 * time.Minute, Poll: 2 * time.Second}
}

// Where the Job's pod has what it needs.
const (
	// JobRequestEnv is the environment variable with the [JobRequest] as JSON.
	JobRequestEnv = "APPARATE_REQUEST"
	// JobCredentials and JobCA are the directories of the credentials
	// (".dockerconfigjson") and of the certificates ("ca.crt"), if there are any.
	JobCredentials = "/etc/apparate/credentials"
	JobCA          = "/etc/apparate/ca"
	// jobTemp is the directory for layers that wait for their upload.
	jobTemp = "/var/tmp/apparate"
	// labelConversion marks Jobs and pods with the conversion's UID.
	labelConversion = v1alpha1.Group + "/conversion"
)

// JobRequest is what the Job's program is asked to do. It has no secrets.
type JobRequest struct {
	Host    string            `json:"host"`
	Request converter.Request `json:"request"`
	TempDir string            `json:"tempDir"`
}

// JobResult is what it writes as the termination message of its container.
type JobResult struct {
	Result  *converter.Result `json:"result,omitempty"`
	Kind    fault.Kind        `json:"kind,omitempty"`
	Message string            `json:"message,omitempty"`
	Retry   bool              `json:"retry,omitempty"`
	// After is the wait that the registry asks for, in nanoseconds.
	After time.Duration `json:"after,omitempty"`
}

// NewJobResult makes the message of an outcome, of at most 4096 bytes, which is
// what the kubelet keeps.
func NewJobResult(r converter.Result, err error) ([]byte, error) {
	out := JobResult{Result: &r}
	if err != nil {
		const most = 2000
		out = JobResult{Kind: fault.KindOf(err), Retry: fault.Temporary(err), After: fault.After(err), Message: err.Error()}
		out.Message = out.Message[:min(most, len(out.Message))]
	}
	return json.Marshal(out)
}

// Jobs converts each image in a Kubernetes Job of its own, beside the Registry,
// whose Secret the pod mounts; the pod has no access to Kubernetes.
type Jobs struct {
	// Client writes; Reader reads from the server, not from a cache.
	Client  client.Client
	Reader  client.Reader
	Options JobOptions
	Timeout time.Duration
}

var _ Runner = (*Jobs)(nil)

// Run implements Runner. The Job's name depends on the conversion alone, so an
// operator that starts anew finds the one that runs, and waits for it.
func (j *Jobs) Run(ctx context.Context, r *v1alpha1.Registry, c *v1alpha1.ImageConversion) (converter.Result, error) {
	job, err := j.job(r, c)
	if err != nil {
		return converter.Result{}, err
	}
	if err := j.Client.Create(ctx, job); err != nil && !apierrors.IsAlreadyExists(err) {
		return converter.Result{}, fault.NewTemporary(fault.Internal, err, "creating Job %s", job.Name)
	}
	result, err := j.wait(ctx, job)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, ErrSuperseded) && !errors.Is(cause, context.DeadlineExceeded) {
		return result, err // the operator stops: the next one finds the Job
	}
	// The result is known, or not wanted. What remains is removed after Keep.
	deletion, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	gone := j.Client.Delete(deletion, job, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if err == nil && client.IgnoreNotFound(gone) != nil {
		err = fault.NewTemporary(fault.Internal, gone, "removing Job %s", job.Name)
	}
	return result, err
}

// wait waits until the Job is over and reads its result.
func (j *Jobs) wait(ctx context.Context, job *batchv1.Job) (converter.Result, error) {
	t := time.NewTicker(j.Options.Poll)
	defer t.Stop()
	key := client.ObjectKeyFromObject(job)
	for {
		var now batchv1.Job
		err := j.Reader.Get(ctx, key, &now)
		switch {
		case apierrors.IsNotFound(err):
			return converter.Result{}, fault.NewTemporary(fault.Internal, err, "Job %s was deleted before it was done", job.Name)
		case err == nil && over(&now) != "":
			return j.result(ctx, &now)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return converter.Result{}, fault.NewTemporary(fault.Canceled, context.Cause(ctx), "Job %s was not waited for: %s", job.Name, j.pending(context.WithoutCancel(ctx), job))
		}
	}
}

// over says how a Job ended, "" while it has not.
func over(job *batchv1.Job) batchv1.JobConditionType {
	for _, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type
		}
	}
	return ""
}

// pods lists those of a Job.
func (j *Jobs) pods(ctx context.Context, job *batchv1.Job) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := j.Reader.List(ctx, &pods, client.InNamespace(job.Namespace), client.MatchingLabels{labelConversion: job.Labels[labelConversion]}, client.Limit(20))
	return pods.Items, err
}

// result reads what the pod of a Job left as its last words.
func (j *Jobs) result(ctx context.Context, job *batchv1.Job) (converter.Result, error) {
	pods, err := j.pods(ctx, job)
	if err != nil {
		return converter.Result{}, fault.NewTemporary(fault.Internal, err, "reading the pod of Job %s", job.Name)
	}
	for _, p := range pods {
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Terminated == nil {
				continue
			}
			var out JobResult
			if json.Unmarshal([]byte(c.State.Terminated.Message), &out) != nil || out.Result == nil && out.Kind == "" {
				return converter.Result{}, fault.NewTemporary(fault.Internal, nil, "the pod of Job %s ended without a result: %s, exit code %d", job.Name, c.State.Terminated.Reason, c.State.Terminated.ExitCode)
			}
			if out.Result != nil {
				return *out.Result, nil
			}
			return converter.Result{}, &fault.Error{Kind: out.Kind, Message: out.Message, Retry: out.Retry, After: out.After}
		}
	}
	return converter.Result{}, fault.NewTemporary(fault.Internal, nil, "Job %s ended and left no pod: %s", job.Name, j.pending(ctx, job))
}

// pending says in a few words what a Job waits for.
func (j *Jobs) pending(ctx context.Context, job *batchv1.Job) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pods, err := j.pods(ctx, job)
	if err != nil || len(pods) == 0 {
		return "it has no pod"
	}
	p := pods[0]
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			return fmt.Sprintf("pod %s waits: %s %s", p.Name, w.Reason, w.Message)
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			return fmt.Sprintf("pod %s is %s: %s", p.Name, p.Status.Phase, c.Message)
		}
	}
	return fmt.Sprintf("pod %s is %s", p.Name, p.Status.Phase)
}

// job is the Job for a conversion.
func (j *Jobs) job(r *v1alpha1.Registry, c *v1alpha1.ImageConversion) (*batchv1.Job, error) {
	request, err := json.Marshal(JobRequest{Host: r.Host(), Request: RequestOf(r, c), TempDir: jobTemp})
	if err != nil {
		return nil, fault.New(fault.Internal, err, "writing the request of %s", c.Name)
	}
	pod := j.Options.Template.DeepCopy()
	if len(pod.Spec.Containers) == 0 {
		pod.Spec.Containers = []corev1.Container{{}}
	}
	k := &pod.Spec.Containers[0]
	k.Name, k.Image, k.Command = "convert", j.Options.Image, j.Options.Command
	k.Env = append(k.Env, corev1.EnvVar{Name: JobRequestEnv, Value: string(request)})
	k.TerminationMessagePolicy = corev1.TerminationMessageReadFile
	mount := func(name, path string, source corev1.VolumeSource) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
		k.VolumeMounts = append(k.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path, ReadOnly: name != "temp"})
	}
	mount("temp", jobTemp, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	if ref := r.Spec.CredentialsRef; ref != nil {
		mount("credentials", JobCredentials, corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: ref.Name}})
	}
	if ref := r.Spec.CARef; ref != nil {
		items := []corev1.KeyToPath{{Key: ref.Key, Path: "ca.crt"}}
		if ref.Kind == "Secret" {
			mount("ca", JobCA, corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: ref.Name, Items: items}})
		} else {
			mount("ca", JobCA, corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: ref.Name}, Items: items}})
		}
	}
	no, retries := false, int32(0)
	pod.Spec.RestartPolicy, pod.Spec.AutomountServiceAccountToken = corev1.RestartPolicyNever, &no
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	labels := map[string]string{labelConversion: string(c.UID)}
	maps.Copy(pod.Labels, labels)
	deadline, keep := int64(j.Timeout/time.Second), int32(j.Options.Keep/time.Second)
	const room = 63 // a pod's name is made from it, and is a host name
	name := "apparate-" + c.Name
	name = name[:min(room, len(name))]
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: c.Namespace, Labels: labels,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.KindImageConversion, Name: c.Name, UID: c.UID,
			}},
		},
		Spec: batchv1.JobSpec{
			BackoffLimit: &retries, ActiveDeadlineSeconds: &deadline, TTLSecondsAfterFinished: &keep, Template: *pod,
		},
	}, nil
}

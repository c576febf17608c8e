package podtemplate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// patched returns the template of one shard.
func patched(bs *v1alpha1.BatchSandbox, shard int32) (*v1alpha1.PodTemplate, error) {
	if err := bs.Spec.Template.Check(); err != nil {
		return nil, err
	}
	if shard < 0 || int(shard) >= len(bs.Spec.ShardPatches) {
		return bs.Spec.Template, nil
	}
	patch := bytes.TrimSpace(bs.Spec.ShardPatches[shard].Raw)
	if len(patch) == 0 || bytes.Equal(patch, []byte("null")) {
		return bs.Spec.Template, nil
	}
	template, err := applyPatch(bs.Spec.Template, patch)
	if err != nil {
		return nil, fmt.Errorf("spec.shardPatches[%d]: %w", shard, err)
	}
	return template, nil
}

// applyPatch is strict about what the patch leads to: a misspelt field would
// otherwise vanish and the sandbox run without what its owner asked for.
func applyPatch(template *v1alpha1.PodTemplate, patch []byte) (*v1alpha1.PodTemplate, error) {
	if template == nil {
		template = &v1alpha1.PodTemplate{}
	}
	original, err := json.Marshal(template)
	if err != nil {
		return nil, fmt.Errorf("marshalling spec.template: %w", err)
	}
	merged, err := strategicpatch.StrategicMergePatch(original, patch, corev1.PodTemplateSpec{})
	if err != nil {
		return nil, fmt.Errorf("not a strategic merge patch for a pod template: %w", err)
	}
	result := &v1alpha1.PodTemplate{}
	unknown, err := kjson.UnmarshalStrict(merged, &result.PodTemplateSpec)
	if err != nil {
		return nil, fmt.Errorf("the patched template is not a pod template: %w", err)
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("the patched template is not a pod template: %w", errors.Join(unknown...))
	}
	return result, nil
}

package checks

import (
	"maps"
	"os"
	"slices"
	"testing"

	scorecardv1alpha3 "github.com/operator-framework/api/pkg/apis/scorecard/v1alpha3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

func TestTheBundleRunsEveryCheckOnce(t *testing.T) {
	text, err := os.ReadFile("../../bundle/tests/scorecard/config.yaml")
	require.NoError(t, err)
	var config scorecardv1alpha3.Configuration
	require.NoError(t, yaml.Unmarshal(text, &config))
	var names []string
	for _, stage := range config.Stages {
		for _, test := range stage.Tests {
			if test.Labels["suite"] == "opensandbox" {
				require.Len(t, test.Entrypoint, 2)
				names = append(names, test.Entrypoint[1])
			}
		}
	}
	assert.ElementsMatch(t, slices.Collect(maps.Keys(All)), names)
}

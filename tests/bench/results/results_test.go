package results

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func table() Table {
	t := Table{
		ID: "loads", Title: "An open load", Note: "Until it is delivered.", Keys: []string{"recycling"},
		Columns: []Column{{Name: "a second"}, {Name: "p50", Unit: "ms", Digits: 1}, {Name: "ratio", Digits: 2}},
	}
	t.Add([]string{"Noop"}, 25, 17.25, 1.1)
	t.Add([]string{"Delete"}, 50, NotMeasured, NotMeasured)
	return t
}

func TestATableIsPrintedWithItsDigitsAndWithoutWhatWasNotMeasured(t *testing.T) {
	var text, markdown strings.Builder
	list := table()
	list.Incomplete = "it broke"
	require.NoError(t, list.WriteText(&text))
	require.Equal(t, `
An open load
Until it is delivered.
Incomplete: it broke

   recycling   a second   p50 (ms)   ratio
        Noop         25       17.2    1.10
      Delete         50          -       -
`, text.String())
	require.NoError(t, list.WriteMarkdown(&markdown))
	require.Equal(t, `| recycling | a second | p50 (ms) | ratio |
|---|--:|--:|--:|
| Noop | 25 | 17.2 | 1.10 |
| Delete | 50 | - | - |
`, markdown.String())
}

func TestARunReplacesItsTablesInTheFileAndLeavesTheOthers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bench.json")
	var out strings.Builder
	first := Run{Command: "make bench", Environment: Environment{Commit: "one"}, Out: &out, File: file}
	require.NoError(t, first.Add(table()))
	require.NoError(t, first.Add(Table{ID: "cost", Command: "make cost"}))
	second := Run{Command: "make bench again", Environment: Environment{Commit: "two"}, Out: &out, File: file}
	again := table()
	again.Rows = again.Rows[1:]
	require.NoError(t, second.Add(again))

	document, err := Read(file)
	require.NoError(t, err)
	require.Len(t, document.Tables, 2)
	loads, cost := document.Table("loads"), document.Table("cost")
	require.Equal(t, "two", loads.Environment.Commit)
	require.Equal(t, "make bench again", loads.Command)
	require.Len(t, loads.Rows, 1)
	require.Equal(t, "one", cost.Environment.Commit)
	require.Equal(t, "make cost", cost.Command, "a table may know a shorter command")
	require.Nil(t, document.Table("no such table"))

	p50, err := loads.Column("p50")
	require.NoError(t, err)
	require.False(t, Measured(p50[0]), "null in the file is no zero")
	_, err = loads.Column("p51")
	require.ErrorContains(t, err, `no column "p51"`)
}

func TestRowsMustFitTheirHeads(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bench.json")
	list := table()
	list.Add([]string{"Restart"}, 1)
	run := Run{Out: &strings.Builder{}, File: file}
	require.ErrorContains(t, run.Add(list), "has 1 keys and 1 values instead of 1 and 3")
	require.NoFileExists(t, file)

	require.NoError(t, os.WriteFile(file, []byte(`{"tables": [{"id": "x", "colums": []}]}`), 0o600))
	_, err := Read(file)
	require.ErrorContains(t, err, `unknown field "colums"`)
	require.ErrorContains(t, run.Add(table()), "unknown field", "a file that is something else is not overwritten")
}

package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/opensandbox/operator/tests/bench/results"
)

// notMeasured stands in place of a table that no file has.
const notMeasured = "This was not measured yet."

// writer fills the templates.
type writer struct {
	document *results.Document
	// runs are the environments of all tables, without repetition. A table names its own by its
	// place here, from 1.
	runs []results.Environment
	// shown are the tables that a template has named, drawn the charts, by the names of their files.
	shown map[string]bool
	drawn map[string][]byte
}

func newWriter(document *results.Document) *writer {
	w := &writer{document: document, shown: map[string]bool{}, drawn: map[string][]byte{}}
	for i := range document.Tables {
		if run := document.Tables[i].Environment; !slices.Contains(w.runs, run) {
			w.runs = append(w.runs, run)
		}
	}
	return w
}

// page returns the document of a template, in which these functions can be called.
func (w *writer) page(file string) ([]byte, error) {
	page, err := template.New(filepath.Base(file)).Funcs(template.FuncMap{
		"table": w.table, "explained": w.explained, "chart": w.chart, "runs": w.listRuns,
		"days": w.days, "at": w.at, "first": w.first, "held": w.held,
	}).ParseFiles(file)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "<!-- Made by 'make benchmark-docs' of docs/benchmarks/%s and the measurements beside it. -->\n", page.Name())
	if err := page.Execute(&out, nil); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// nothingLeft refuses tables that no template shows.
func (w *writer) nothingLeft() error {
	for i := range w.document.Tables {
		if table := &w.document.Tables[i]; !w.shown[table.ID] {
			return fmt.Errorf("no template shows the table %q (%s)", table.ID, table.Title)
		}
	}
	return nil
}

// table returns a table with the command that makes it.
func (w *writer) table(id string) (string, error) {
	if w.shown[id] {
		return "", fmt.Errorf("the table %q is shown twice", id)
	}
	w.shown[id] = true
	table := w.document.Table(id)
	if table == nil {
		return notMeasured, nil
	}
	var out strings.Builder
	if err := table.WriteMarkdown(&out); err != nil {
		return "", err
	}
	fmt.Fprintf(&out, "\nRun %d: `%s`.", slices.Index(w.runs, table.Environment)+1, table.Command)
	if table.Incomplete != "" {
		fmt.Fprintf(&out, " It ended before all was measured: %s.", table.Incomplete)
	}
	return out.String(), nil
}

// explained returns a table below its own note.
func (w *writer) explained(id string) (string, error) {
	text, err := w.table(id)
	if table := w.document.Table(id); table != nil && table.Note != "" {
		text = table.Note + "\n\n" + text
	}
	return text, err
}

// chart draws a chart and returns the reference to it: nothing where it was not measured, as the
// table beside it says so.
func (w *writer) chart(name string) (string, error) {
	at := slices.IndexFunc(figures, func(f figure) bool { return f.name == name })
	if at < 0 {
		return "", fmt.Errorf("there is no chart %q", name)
	}
	svg, err := figures[at].draw(w.document)
	if svg == nil || err != nil {
		return "", err
	}
	w.drawn[name+".svg"] = svg
	return fmt.Sprintf("![%s](%s/%s.svg)", figures[at].chart.Title, chartFolder, name), nil
}

// listRuns returns a table of what was measured, and on what.
func (w *writer) listRuns() (string, error) {
	if len(w.runs) == 0 {
		return notMeasured, nil
	}
	lines := []string{"| run | date, commit | Kubernetes, etcd's fsync | machine | operator |", "|--:|---|---|---|---|"}
	for i, run := range w.runs {
		lines = append(lines, fmt.Sprintf("| %d | %s, %s | %s, %s | %d CPUs (%s), %d GiB, load before %s | `%s` |",
			i+1, run.Date, run.Commit, run.Kubernetes, run.Fsync, run.CPUs, run.CPUModel, run.MemoryGiB, run.Load, run.Operator))
	}
	return strings.Join(lines, "\n"), nil
}

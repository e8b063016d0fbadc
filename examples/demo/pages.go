package main

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed templates
var templateFiles embed.FS

//go:embed static
var staticTree embed.FS

// view is what every page is made of.
type view struct {
	Title  string
	Tab    string  // of the navigation: devices, keys, statistics
	Device *Device // nil: nobody is signed in
	Notice string  // of what was just done
	Data   any
}

// views are the pages, each a template in the frame of layout.html.
type views map[string]*template.Template

func parseViews(now func() time.Time) (views, error) {
	layout, err := template.New("layout.html").Funcs(template.FuncMap{
		"time":   func(t any) moment { return momentOf(t, now()) },
		"device": describe,
	}).ParseFS(templateFiles, "templates/layout.html")
	if err != nil {
		return nil, err
	}
	files, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		return nil, err
	}
	v := make(views)
	for _, file := range files {
		name := strings.TrimSuffix(path.Base(file), ".html")
		if name == "layout" {
			continue
		}
		page, err := layout.Clone()
		if err != nil {
			return nil, err
		}
		if v[name], err = page.ParseFS(templateFiles, file); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// render answers with a page. It is made first and sent then, so that one that
// fails is not half a page with the status 200.
func (v views) render(w http.ResponseWriter, status int, name string, data view) {
	var page bytes.Buffer
	if err := v[name].Execute(&page, data); err != nil {
		panic(fmt.Sprintf("template %s: %v", name, err)) // a mistake here: net/http logs it
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = page.WriteTo(w) // who has gone misses nothing
}

// show renders a page that went well, with the notice that the query asks for.
func (s *site) show(w http.ResponseWriter, r *http.Request, name string, v view) error {
	v.Notice = notices[r.URL.Query().Get("done")]
	s.views.render(w, http.StatusOK, name, v)
	return nil
}

// notices are what may stand at the top of a page: fixed text, since anybody can
// write a link.
var notices = map[string]string{
	"signed-out":  "You are signed out.",
	"device-out":  "That device is signed out.",
	"others-out":  "All other devices are signed out.",
	"renamed":     "The device has its new name.",
	"password":    "Your password is changed, and all other devices are signed out.",
	"key-revoked": "The key is revoked. Programs that use it are refused from now on.",
}

func (s *site) home(w http.ResponseWriter, r *http.Request) error {
	if device, err := current(r); err != nil {
		return err
	} else if device != nil {
		http.Redirect(w, r, "/account", http.StatusSeeOther)
		return nil
	}
	return s.show(w, r, "home", view{Title: "Sessions you can see"})
}

// staticFiles serves the style sheet, the script and the icon. They are no
// secrets: caches may keep them for a while.
func staticFiles() (http.Handler, error) {
	tree, err := fs.Sub(staticTree, "static")
	if err != nil {
		return nil, err
	}
	files := http.StripPrefix("/static/", http.FileServerFS(tree))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/") { // no list of them
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Cache-Control", "public, max-age=300")
		files.ServeHTTP(w, r)
	}), nil
}

// moment is a time as pages show it.
type moment struct{ Machine, Text, Full string }

// momentOf takes a time.Time or a *time.Time, which may be nil: never.
func momentOf(t any, now time.Time) moment {
	var at time.Time
	switch t := t.(type) {
	case time.Time:
		at = t
	case *time.Time:
		if t == nil {
			return moment{Text: "never"}
		}
		at = *t
	}
	at = at.UTC()
	return moment{at.Format(time.RFC3339), relative(at, now), at.Format("2 January 2006, 15:04 UTC")}
}

// relative is a time as people say it.
func relative(at, now time.Time) string {
	d, format := now.Sub(at), "%s ago"
	if d < 0 {
		d, format = -d, "in %s"
	}
	switch {
	case d < time.Minute && at.After(now):
		return "in a moment"
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf(format, many(d.Round(time.Minute)/time.Minute, "minute"))
	case d < 24*time.Hour:
		return fmt.Sprintf(format, many(d.Round(time.Hour)/time.Hour, "hour"))
	case d < 60*24*time.Hour:
		return fmt.Sprintf(format, many(d.Round(24*time.Hour)/(24*time.Hour), "day"))
	}
	return at.Format("2 January 2006")
}

func many(n time.Duration, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// LastActive is when the device was last used, to the minute.
func (d *Device) LastActive() time.Time {
	if d.LastUsedAt != nil {
		return *d.LastUsedAt
	}
	return d.CreatedAt
}

// Label is what the device is called.
func (d *Device) Label() string {
	if d.Name != "" {
		return d.Name
	}
	return describe(d.UserAgent).String()
}

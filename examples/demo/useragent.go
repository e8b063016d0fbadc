package main

import "strings"

// agent is what a browser says of itself.
type agent struct {
	Browser, System string
	Mobile          bool
}

func (a agent) String() string {
	switch {
	case a.Browser == "" && a.System == "":
		return "Unknown device"
	case a.Browser == "":
		return a.System
	case a.System == "":
		return a.Browser
	}
	return a.Browser + " on " + a.System
}

// browsers and systems are looked for in this order: most browsers also claim to
// be the ones below them.
var (
	browsers = []struct{ mark, name string }{
		{"Edg/", "Edge"}, {"EdgA/", "Edge"}, {"EdgiOS/", "Edge"},
		{"OPR/", "Opera"}, {"OPiOS/", "Opera"},
		{"Vivaldi/", "Vivaldi"},
		{"YaBrowser/", "Yandex Browser"},
		{"SamsungBrowser/", "Samsung Internet"},
		{"DuckDuckGo/", "DuckDuckGo"}, {"Ddg/", "DuckDuckGo"},
		{"Firefox/", "Firefox"}, {"FxiOS/", "Firefox"},
		{"HeadlessChrome/", "Chrome"}, {"Chrome/", "Chrome"}, {"CriOS/", "Chrome"}, {"Chromium/", "Chromium"},
		{"Safari/", "Safari"},
		{"MSIE ", "Internet Explorer"}, {"Trident/", "Internet Explorer"},
		{"curl/", "curl"}, {"Wget/", "Wget"}, {"Go-http-client/", "Go"}, {"python-requests/", "Python"},
	}
	systems = []struct {
		mark, name string
		mobile     bool
	}{
		{"iPhone", "iPhone", true}, {"iPad", "iPad", true},
		{"Android", "Android", true},
		{"Windows", "Windows", false},
		{"CrOS", "ChromeOS", false},
		{"Macintosh", "macOS", false}, {"Mac OS X", "macOS", false},
		{"FreeBSD", "FreeBSD", false}, {"OpenBSD", "OpenBSD", false},
		{"Linux", "Linux", false}, {"X11", "Unix", false},
	}
)

// describe reads a User-Agent header. It is a kindness to people with a list of
// devices before them, and no proof of anything.
func describe(header string) (a agent) {
	for _, b := range browsers {
		if strings.Contains(header, b.mark) {
			a.Browser = b.name
			break
		}
	}
	for _, s := range systems {
		if strings.Contains(header, s.mark) {
			a.System, a.Mobile = s.name, s.mobile
			break
		}
	}
	return a
}
